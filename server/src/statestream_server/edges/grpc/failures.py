"""How errors leave a unary call or a server stream: as google.rpc.Status with details."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from time import monotonic
from typing import Any, NoReturn, Protocol, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_status import rpc_status

from statestream.contract import errors
from statestream_server.edges.grpc.caps import Caps
from statestream_server.edges.grpc.decoding import Unreadable
from statestream_server.edges.grpc.readers import Readers

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Servicer = TypeVar("Servicer", bound="Capped")
Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response")


class Capped(Protocol):
    """A servicer whose requests are checked before it sees them."""

    caps: Caps


class Streaming(Capped, Protocol):
    """A servicer that writes more than one answer to a call."""

    readers: Readers


Streams = TypeVar("Streams", bound=Streaming)


async def abort(context: Context, error: Exception) -> NoReturn:
    """Ends the call with an error; one that is no StatestreamError is a fault of the server and is logged."""
    if not isinstance(error, errors.StatestreamError):
        log.exception("unexpected error", exc_info=error)
        error = errors.InternalError("the server failed in a way it did not expect; its log has the details")
    # gRPC keeps what it raises here with the call, and so every frame on the way up, until the garbage collector finds
    # the circle. Frames that hold a request would keep gigabytes of refused ones; callers let go of theirs before.
    error.__traceback__ = error.__context__ = error.__cause__ = None
    try:
        await context.abort_with_status(rpc_status.to_status(errors.to_status(error)))
    except grpc.aio.InternalError:
        # The status waited behind what the caller did not read, and the caller left.
        raise asyncio.CancelledError from error


def unary(
    method: Callable[[Servicer, Request, Context], Awaitable[Response]],
) -> Callable[[Servicer, Request, Context], Awaitable[Response]]:
    """Decorates a unary handler: what it raises leaves as a status."""

    @functools.wraps(method)
    async def handler(self: Servicer, request: Request | Unreadable, context: Context) -> Response:
        if isinstance(request, Unreadable):
            await abort(context, request.error)
        try:
            self.caps.check(request)
            return await method(self, request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            del request
            await abort(context, error)

    return handler


def server_stream(
    method: Callable[[Streams, Request, Context], AsyncIterator[Response]],
) -> Callable[[Streams, Request, Context], Awaitable[None]]:
    """Decorates an async generator: its items are written, it is closed whatever happens, errors become a status.

    A reader that takes nothing for too long ends it, too.
    """

    @functools.wraps(method)
    async def handler(self: Streams, request: Request | Unreadable, context: Context) -> None:
        if isinstance(request, Unreadable):
            await abort(context, request.error)
        responses = method(self, request, context)
        try:
            self.caps.check(request)
            # By itself: an error that meets the first message on its way would send it once more.
            await context.send_initial_metadata(())
            with self.readers.follow() as reading:
                async for response in responses:
                    reading.since = monotonic()
                    await context.write(response)
                    reading.since = None
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            # First, because the status waits for the reader behind what it has not read.
            await responses.aclose()  # type: ignore[attr-defined]  # an async generator has it, its protocol not
            del request
            await abort(context, error)
        finally:
            await responses.aclose()  # type: ignore[attr-defined]  # an async generator has it, its protocol not

    return handler
