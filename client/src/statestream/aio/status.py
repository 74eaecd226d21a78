"""How a call of grpc.aio ended, before anything takes the place of what the server said."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

import grpc

T = TypeVar("T")


def status_of(call: grpc.aio.Call) -> grpc.aio.AioRpcError:
    """The status of a call, for its done callback.

    A write that fails because the call is over gives it a status of gRPC's own, INTERNAL. Whoever reads learns no more
    then whether the server failed or is away; at the time of the callback the server's word is still there.
    """
    code, trailing, details = _now(call.code()), _now(call.trailing_metadata()), _now(call.details())
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details or "the stream ended")


def _now(answer: Awaitable[T]) -> T:
    """The value of an awaitable that has nothing to wait for."""
    try:
        next(iter(answer.__await__()))
    except StopIteration as done:
        value: T = done.value
        return value
    raise RuntimeError("gRPC called back for a call that is not over")
