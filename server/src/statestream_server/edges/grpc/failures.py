"""How errors leave a call: as google.rpc.Status with details. In a stream, a frame's errors leave as frames."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

import grpc
from grpc_status import rpc_status

from statestream.contract import errors
from statestream_server.caller import Caller
from statestream_server.refusals import recent

log = logging.getLogger(__name__)

_NOTHING: Final[Mapping[str, str]] = {}
_MOST_KNOWN: Final = 256
_known = dict[tuple[object, ...], grpc.Status]()
"""The status of errors that were told lately."""

Context = grpc.aio.ServicerContext[Any, Any]


def told(
    error: Exception, how: str = "in a way it did not expect", about: Mapping[str, str] = _NOTHING
) -> errors.StatestreamError:
    """What the caller is told; an error that is no StatestreamError is a fault of the server and is logged."""
    if isinstance(error, errors.StatestreamError):
        return error
    log.exception("the server failed %s", how, exc_info=error, extra={**about})
    return errors.InternalError(f"the server failed {how}; its log has the details")


def status(error: Exception, who: Caller | None = None) -> grpc.Status:
    """The status of an error, with its details, which `who` is told, or the caller of the running call."""
    error = told(error)
    recent.note(error, who)
    # In a flood the same is said to thousands.
    key = type(error), error.message, error.retry_after, *sorted(error.metadata.items())
    found = _known.get(key)
    if found is None:
        found = rpc_status.to_status(errors.to_status(error))
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[key] = found
    return found


async def begin(context: Context) -> None:
    """Sends the headers of an answer by themselves: an error that meets the first message would send them once more.

    They are sent whole where the call is cancelled meanwhile, as by a token that ends: grpcio takes no status of a call
    whose headers are under way, and its caller would wait for ever.
    """
    sending = asyncio.ensure_future(context.send_initial_metadata(()))
    try:
        await asyncio.shield(sending)
    except asyncio.CancelledError:
        await asyncio.wait([sending])
        if not sending.cancelled():
            sending.exception()  # The caller has left: nobody is there to be told.
        raise


async def abort(context: Context, error: Exception, about: Mapping[str, str] = _NOTHING) -> NoReturn:
    """Ends the call with an error; `about` is what the log says of the call where the error is a fault of ours."""
    error = told(error, about=about)
    # gRPC keeps what it raises here with the call, and so every frame on the way up, until the garbage collector finds
    # the circle. Frames that hold a request would keep gigabytes of refused ones; callers let go of theirs before.
    error.__traceback__ = error.__context__ = error.__cause__ = None
    try:
        await context.abort_with_status(status(error))
    except grpc.aio.InternalError:
        # The status waited behind what the caller did not read, and the caller left.
        raise asyncio.CancelledError from error


def refusing(error: Exception) -> grpc.RpcMethodHandler[Any, Any]:
    """What serves a call that is refused, whatever its shape: it waits for no message."""

    async def refuse(_requests: object, context: Context) -> None:
        await abort(context, error)

    of: Callable[..., grpc.RpcMethodHandler[Any, Any]] = grpc.stream_stream_rpc_method_handler
    return of(refuse)
