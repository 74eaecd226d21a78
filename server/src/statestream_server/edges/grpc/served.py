"""Served: one call of an edge of ours, to its servicer what grpcio's ServicerContext is; its task, its status, its end.

What carries it is not known here: a class over this one says what came and writes what is said.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context as Variables
from contextvars import copy_context
from time import monotonic
from typing import Any, Final, NoReturn, Protocol

import grpc

from statestream_server import caller
from statestream_server.caller import Caller
from statestream_server.edges.grpc.chain import Chain, Handler, Take
from statestream_server.edges.grpc.failures import status
from statestream_server.edges.grpc.prefixed import HEAD, Refused, check_size
from statestream_server.edges.grpc.readers import Reading

Metadata = Sequence[tuple[str, str | bytes]]
_CODE: Final = grpc.StatusCode
_log = logging.getLogger(__name__)


class Asked(Protocol):
    """What a call says of itself.

    Attributes:
        method: `/service/method`.
        handler, direct: What serves it, as grpcio has handlers, and what may take it without a task.
    """

    method: str
    handler: Handler | None
    direct: Take | None


class Served:
    """A call, from its first message to its status."""

    __slots__ = (
        "_chain", "_code", "_context", "_counted", "_details", "_direct", "_draw", "_ended", "_handler", "_inbox",
        "_loop", "_method", "_most_in", "_pulled", "_reading", "_streams", "_take", "_task", "_trailing", "_waiter",
        "_who", "over",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, chain: Chain, most_in: int, asked: Asked, who: Caller) -> None:
        """A call of `who`, of which nothing came, whose messages have at most so many bytes."""
        self.over = False  # Whether all is said but what waits for room.
        self._loop, self._chain, self._most_in, self._who = loop, chain, most_in, who
        self._method, self._direct = asked.method, asked.direct
        self._handler: Any = asked.handler
        """None where there is none, and the call is refused."""
        self._streams = asked.handler is not None and asked.handler.request_streaming
        self._inbox: deque[tuple[bytes, int]] = deque()
        """Messages that are not taken yet, and how many bytes each had on its way."""
        self._ended = False  # Whether the client has said all.
        self._waiter: asyncio.Future[bool] | None = None  # Resolved when there is something to read; False for an end.
        self._take: Callable[[Any], object] | None = None
        self._context: Variables | None = None
        self._draw: Callable[[], Any] | None = None
        self._pulled: asyncio.Future[None] | None = None
        self._reading: Reading | None = None
        self._task: asyncio.Task[None] | None = None
        self._counted: Callable[[str], None] | None = None  # Told the code at the end, where no task counts the call.
        self._code, self._details = _CODE.OK, ""  # Its status, until somebody says another.
        self._trailing: Metadata = ()

    # What is under it tells.

    def came(self, message: bytes, size: int) -> None:
        """A message is whole; it had `size` bytes on its way."""
        if self.over:
            return
        take = self._take
        if take is None or size - HEAD > self._most_in:
            self._keep(message, size)
            return
        assert self._context is not None
        assert self._waiter is not None
        try:
            more = self._context.run(take, self._handler.request_deserializer(message))
        except Exception as error:
            self._take = None
            self._waiter.set_exception(error)
        else:
            if not more:
                self._take = None
                self._waiter.set_result(True)
        self._taken(0)

    def _keep(self, message: bytes, size: int) -> None:
        """Nobody takes it now."""
        try:
            check_size(size - HEAD, self._most_in)
        except Refused as error:
            self._refuse(error.code, error.details)
            return
        if self._inbox and not self._streams:
            self._refuse(_CODE.UNIMPLEMENTED, "the call has several messages; expected one")
            return
        self._kept(size)
        self._inbox.append((message, size))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    def half_closed(self) -> None:
        """The client has said all."""
        if self._ended or self.over:
            return
        self._ended = True
        if self._streams:
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(False)
        elif self._inbox:
            self._start(self._inbox.popleft()[0])
        else:
            self._refuse(_CODE.INTERNAL, "the call has no message; expected one")

    def lost(self) -> None:
        """The client gave it up, or its connection is gone."""
        self.over, self._code = True, _CODE.CANCELLED
        self._count()
        if self._task is not None:
            self._task.cancel()

    def draw(self) -> None:
        """Draws what is to be said, as far as there is room."""
        if self._draw is None or self.over:
            return
        reading = self._reading
        assert self._pulled is not None
        try:
            while self._has_room() and not self.over:
                message = self._draw()
                if message is None:
                    if reading is not None:
                        reading.since = None
                    return
                if message is grpc.aio.EOF:
                    self._draw = None
                    self._pulled.set_result(None)
                    return
                self._put(message)
        except Exception as error:
            self._draw = None
            if not self._pulled.done():
                self._pulled.set_exception(error)
            return
        if not self.over:
            self._wait()
            if reading is not None:
                reading.since = monotonic()

    # What servicers use.

    async def feed(self, take: Callable[[Any], object]) -> bool:
        """Has `take` handle each message where it arrives, until it says that it wants no more for now.

        Returns:
            Whether more may come: False once the client has half-closed.
        """
        while self._inbox:
            message, size = self._inbox.popleft()
            self._taken(size)
            if not take(self._handler.request_deserializer(message)):
                return True
        if self._ended:
            return False
        self._take = take
        self._waiter = self._loop.create_future()
        try:
            return await self._waiter
        finally:
            self._take = self._waiter = None

    async def read(self) -> Any:
        """The next message; `grpc.aio.EOF` once the client has half-closed."""
        found = list[Any]()
        await self.feed(found.append)
        return found[0] if found else grpc.aio.EOF

    def __aiter__(self) -> Served:
        return self

    async def __anext__(self) -> Any:
        message = await self.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message

    async def pull(self, draw: Callable[[], Any], reading: Reading | None = None) -> None:
        """Draws messages while there is room, and again when `rouse` was called: `draw` gives one, or None, or EOF.

        `reading` is told since when there is no room.
        """
        pulled = self._pulled = self._loop.create_future()
        self._draw, self._reading = draw, reading
        self.draw()
        if self.over:
            raise asyncio.CancelledError
        try:
            await pulled
        finally:
            self._draw = None

    async def write(self, message: Any) -> None:
        """Writes a message, and returns when there is room for another."""
        await self.pull(iter((message, grpc.aio.EOF)).__next__)

    def answer(self, message: Any) -> None:
        """Ends a call that has no task with its answer; see `chain.Direct`."""
        if self.over:
            return
        try:
            self._put(message)
            self._finish()
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Ends a call that has no task with an error."""
        if self.over:
            return
        found = status(error, self._who)
        self._code, self._details, self._trailing = found.code, found.details, found.trailing_metadata or ()
        self._finish()

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """Ends the call with a status.

        Raises:
            grpc.aio.AbortError: Always.
        """
        if code is _CODE.OK:
            code, details = _CODE.UNKNOWN, "a call was aborted with OK"
        self._code, self._details, self._trailing = code, details, trailing_metadata
        raise grpc.aio.AbortError

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """Ends the call with a status.

        Raises:
            grpc.aio.AbortError: Always.
        """
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    # Its task, and its end.

    def _start(self, message: bytes | None) -> None:
        """Has it served: of the one message that came, or None where it reads them itself."""
        handler, direct, chain, name = self._handler, self._direct, self._chain, self._method
        request, who = self, self._who
        try:
            if message is not None:
                # Under too much load most calls end here: nothing is decoded, and no task made.
                chain.look(name, who, len(message))
                request = handler.request_deserializer(message)
                if direct is not None and (counted := chain.begin(name, direct, request, who, self)) is not None:
                    self._counted = counted
                    if self.over:
                        self._count()
                    return
        except Exception as error:
            chain.refused(name, error)
            self.fail(error)
            return
        self._context = copy_context()
        self._context.run(caller.current.set, who)
        method = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        self._task = self._loop.create_task(self._serve(method, request), context=self._context)

    async def _serve(self, method: Callable[[Any, Served], Awaitable[Any]], request: Any) -> None:
        try:
            answer = await method(request, self)
            del request
            if not self._handler.response_streaming and not self.over:
                self._put(answer)
            self._finish()
        except grpc.aio.AbortError:
            self._finish()
        except asyncio.CancelledError:
            self._refuse(_CODE.CANCELLED, "the server gave the call up")
        except Exception as error:
            _log.exception("the server failed in a call")
            self._refuse(_CODE.UNKNOWN, f"Unexpected {type(error)}")
        finally:
            self._task = None

    def _refuse(self, code: grpc.StatusCode, details: str) -> None:
        """Ends the call with an error that no servicer decided."""
        if not self.over:
            self._code, self._details, self._trailing = code, details, ()
            self._finish()
            if self._task is not None and self._task is not asyncio.current_task():
                self._task.cancel()

    def _finish(self) -> None:
        """Says the status."""
        if not self.over:
            self.over = True
            self._count()
            self._end()

    def _count(self) -> None:
        """Counts it, where no task does."""
        counted, self._counted = self._counted, None
        if counted is not None:
            counted(self._code.name)

    # What a class over this one says.

    def _put(self, message: Any) -> None:
        """Writes a message, or keeps it until there is room."""
        raise NotImplementedError

    def _end(self) -> None:
        """Says the status, behind what waits; an error behind no more of it than a message that was begun."""
        raise NotImplementedError

    def _has_room(self) -> bool:
        """Whether a message may be written."""
        raise NotImplementedError

    def _wait(self) -> None:
        """Has `draw` called when there is room again."""
        raise NotImplementedError

    def _kept(self, size: int) -> None:
        """So many bytes wait until they are taken."""
        raise NotImplementedError

    def _taken(self, size: int) -> None:
        """So many bytes of those do not wait any more, and as much may come."""
        raise NotImplementedError
