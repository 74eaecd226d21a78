"""Calls over the generated stubs: a channel, its unary services, and what a failure says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Final

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc, model_pb2_grpc, session_pb2_grpc
from tests.support.arrays import Arrays, tensor

DEADLINE: Final = 20.0
"""Seconds after which a missing answer is a failure of the test."""


@dataclass(frozen=True)
class Failure:
    """What a status and its details say."""

    code: str
    reason: str
    domain: str
    message: str
    metadata: dict[str, str]
    retry_after: float | None
    fields: list[str]


def failure_of(status: status_pb2.Status) -> Failure:
    info, retry, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
    after, fields = None, list[str]()
    for detail in status.details:
        if detail.Unpack(retry):
            after = retry.retry_delay.ToNanoseconds() / 1e9
        elif detail.Unpack(bad):
            fields = [violation.field for violation in bad.field_violations]
        else:
            detail.Unpack(info)
    code = code_pb2.Code.Name(status.code)
    return Failure(code, info.reason, info.domain, status.message, dict(info.metadata), after, fields)


async def failing(call: Awaitable[Any]) -> Failure:
    """The failure of a call that must fail, from its trailing metadata."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, DEADLINE)
    error = caught.value
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    assert details is not None, f"no details with {error.code()}: {error.details()}"
    status = status_pb2.Status.FromString(details)
    assert status.code == error.code().value[0]
    return failure_of(status)


async def everything(call: Any) -> list[Any]:
    """All messages of a server stream."""
    return [message async for message in call]


class Caller:
    """The unary services of one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.inference = inference_pb2_grpc.InferenceServiceStub(channel)
        self.sessions = session_pb2_grpc.SessionServiceStub(channel)
        self.models = model_pb2_grpc.ModelServiceStub(channel)

    async def step(self, model: str, session: str, inputs: Arrays, **more: Any) -> pb.StepResponse:
        tensors = [tensor(name, array) for name, array in inputs.items()]
        request = pb.StepRequest(model=model, session_id=session, inputs=tensors, **more)
        response: pb.StepResponse = await self.inference.Step(request, timeout=DEADLINE)
        assert response.durable_position <= response.position
        return response


@contextlib.asynccontextmanager
async def connected(address: str) -> Any:
    """A channel of its own: no connection is shared with other tests.

    How much it takes in that nobody reads does not grow: gRPC widens its windows where answers come slowly, until all
    that a test wanted unread has been taken.
    """
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", 64 << 20),
        ("grpc.http2.bdp_probe", 0),
    ]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield channel
