"""What is refused leaves memory at once, not when the garbage collector comes: requests are megabytes."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

from statestream import errors
from statestream_server.edges.grpc.chain import answered, limited, written
from statestream_server.edges.grpc.failures import Context
from statestream_server.edges.grpc.readers import Readers
from statestream_server.requests import Requests


class Request:
    """Stands for a message; it can be watched."""


class Servicer:
    """Refuses everything, with an error that has another behind it."""

    def well(self, request: Request) -> Request:
        """Every request is small enough."""
        return request

    async def Once(self, request: Any, context: Context) -> bytes:
        """Fails while it holds its request."""
        raise refusal(request)

    async def Many(self, request: Any, context: Context) -> AsyncIterator[bytes]:
        """Fails after its first answer."""
        yield b"1"
        raise refusal(request)


def refusal(request: Request) -> errors.BadTensor:
    """An error whose cause, and the frame that it comes from, have the request."""
    try:
        raise ValueError(request)
    except ValueError as cause:
        error = errors.BadTensor("refused")
        error.__cause__ = cause
        return error


async def read_all(answers: AsyncIterable[bytes]) -> list[bytes]:
    """Everything that a call answers."""
    return [answer async for answer in answers]


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only what nothing refers to leaves memory."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("method", ["Once", "Many"])
def test_a_refused_request_is_let_go_at_once(method: str) -> None:
    async def call() -> list[Request]:
        came: list[weakref.ref[Request]] = []

        def decode(_data: bytes) -> Request:
            request = Request()
            came.append(weakref.ref(request))
            return request

        servicer: Any = Servicer()
        requests = Requests(lambda _: False)
        once = answered(limited(servicer.Once, servicer), "s/Once", requests)
        many = answered(limited(written(servicer.Many, Readers(20.0)), servicer), "s/Many", requests)
        handler: Any = {
            "Once": grpc.unary_unary_rpc_method_handler(once, request_deserializer=decode),
            "Many": grpc.unary_stream_rpc_method_handler(many, request_deserializer=decode),
        }
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handler),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            answers: Any = channel.unary_stream(f"/test.Test/{method}")
            with pytest.raises(grpc.aio.AioRpcError, match="refused"):
                await read_all(answers(b""))
        await server.stop(None)
        await asyncio.sleep(0)
        return [request for request in (ref() for ref in came) if request is not None]

    assert asyncio.run(call()) == []
