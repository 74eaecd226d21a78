"""Every field of every request, as large as the limits let through: refused or answered, and nobody else feels it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from statestream.v1 import inference_pb2 as pb
from tests.attacks.arena import Arena, arena, failures_in
from tests.attacks.floods import Flood, floods, opening
from tests.support import models

pytestmark = pytest.mark.attack
FLOODS = [*floods()]
SERVICES = sorted({flood.method.containing_service.name for flood in FLOODS})


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write(tmp_path_factory.mktemp("models"), "counter", "loop", "scores", "pair", "tokens")


@pytest.fixture
async def under_attack(models_dir: Path) -> AsyncIterator[Arena]:
    async with arena(models_dir) as found:
        yield found


def test_every_method_with_a_field_that_grows_is_flooded() -> None:
    """The descriptors were walked: fields of messages in messages, and frames of streams, are there."""
    said = {str(flood) for flood in FLOODS}
    assert {"Stream.chunk.inputs.shape-small", "Stream.open.ids-distinct", "Predict.outputs-distinct"} <= said
    assert {"Generate.texts-distinct", "RestoreSession.snapshot-zeros", "Forecast.history.inputs-empty"} <= said
    assert {"Stream.predict.rows-counted", "ModelInfer.inputs.contents.fp32_contents-small"} <= said
    assert {"ModelStreamInfer.parameters-empty", "ModelInfer.raw_input_contents-zeros"} <= said


@pytest.mark.parametrize("service", SERVICES)
async def test_the_largest_message_of_every_field(under_attack: Arena, service: str) -> None:
    for flood in FLOODS:
        if flood.method.containing_service.name == service:
            answers = await send(under_attack, flood)
            assert answers, f"{flood} was not answered"
    await under_attack.check()


async def send(found: Arena, flood: Flood) -> list[Any]:
    """Sends a flood on a connection of its own; what was answered."""
    data = flood.make(found.limits.max_message_bytes)
    path, junk = flood.called, {"request_serializer": lambda data: data}
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(found.server.address, options=options) as channel:
        if flood.streamed:
            answer_kind = GetMessageClass(flood.method.output_type)
            stream = channel.stream_stream(path, **junk, response_deserializer=answer_kind.FromString)()
            if answer_kind is pb.StreamResponse:
                await stream.write(opening().SerializeToString())
            await stream.write(data)
            await stream.done_writing()
            answers = await found.read(stream)
            for answer in answers:
                if isinstance(answer, pb.StreamResponse):
                    _hear(found, answer)
            return answers
        if flood.method.server_streaming:
            return await found.read(channel.unary_stream(path, **junk)(data)) or ["nothing"]
        async with asyncio.timeout(60):
            return [await found.call(channel.unary_unary(path, **junk)(data))]


def _hear(found: Arena, answer: pb.StreamResponse) -> None:
    kind = answer.WhichOneof("response")
    if kind == "refused":
        found.hear(*failures_in([answer.refused]))
    elif kind is not None:
        found.hear(*failures_in(getattr(getattr(answer, kind), "errors", [])))
