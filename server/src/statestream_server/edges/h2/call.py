"""One call: what it says, its task, its end; and to its servicer what grpcio's ServicerContext is."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc
from h2.errors import ErrorCodes
from h2.stream import H2Stream, StreamState

from statestream_server import caller
from statestream_server.caller import Caller
from statestream_server.edges.grpc.failures import status
from statestream_server.edges.grpc.readers import Reading
from statestream_server.edges.h2 import heads
from statestream_server.edges.h2.heads import Head, Metadata
from statestream_server.edges.h2.messages import Messages

if TYPE_CHECKING:
    from statestream_server.edges.h2.connection import Connection

_CODE: Final = grpc.StatusCode
_log = logging.getLogger(__name__)


class Call(Messages):
    """A call of a connection, from its first frame to its last."""

    __slots__ = (
        "_code", "_counted", "_deadline", "_details", "_draw", "_left", "_pulled",
        "_reading", "_task", "_trailing", "_who", "pending", "since", "usual",
    )  # fmt: skip

    def __init__(self, connection: Connection, stream: H2Stream, head: Head, who: Caller) -> None:
        """A call of `who` that began with `head`, and whose status is OK until somebody says another."""
        super().__init__(connection, stream, head)
        self.usual = False  # Whether the short path may take its DATA.
        self.pending: deque[memoryview] = deque()  # What waits for room to be written.
        self.since = 0.0  # When what waits last moved, by `time.monotonic`.
        self._draw: Callable[[], Any] | None = None
        self._pulled: asyncio.Future[None] | None = None
        self._reading: Reading | None = None
        self._left: bytes | None = None  # The headers that end it, while they wait.
        self._who = who
        self._code, self._details = _CODE.OK, ""
        self._trailing: Metadata = ()
        self._task: asyncio.Task[None] | None = None
        self._counted: Callable[[str], None] | None = None  # Told the code at the end, where no task counts the call.
        self._deadline: asyncio.TimerHandle | None = None

    # What the wire tells.

    def begin(self) -> None:
        """It may be served."""
        if self._head.refusal is not None:
            self.over, self._left = True, self._head.refusal
            self.go_on()
            return
        if self._head.timeout is not None:
            self._deadline = self._connection.loop.call_later(
                self._head.timeout, self._refuse, _CODE.DEADLINE_EXCEEDED, "Deadline Exceeded"
            )
        if self._streams:
            self._start(None)

    def half_closed(self) -> None:
        """The client has said all."""
        if self._ended or self.over:
            return
        self._ended = True
        if self.parts is not None:
            self._refuse(_CODE.INTERNAL, "the call ended within a message")
        elif self._streams:
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(False)
        elif self._inbox:
            self._start(self._inbox.popleft()[0])
        else:
            self._refuse(_CODE.INTERNAL, "the call has no message; expected one")

    def lost(self) -> None:
        """The client gave it up, or its connection is gone."""
        self.over, self._code = True, _CODE.CANCELLED
        self._wire.forget(self)
        self._count()
        self.pending.clear()
        self._left = None
        self._closed()
        if self._task is not None:
            self._task.cancel()

    def go_on(self) -> None:
        """Writes what waits, and behind it the end, as far as there is room."""
        self._push()
        if self.pending or self._wire.paused:
            self._wire.blocked[self] = None
            return
        self._wire.blocked.pop(self, None)
        if self._left is not None:
            self._leave()
        else:
            self.draw()

    def draw(self) -> None:
        """Draws what is to be said, as far as there is room."""
        if self._draw is None or self.over:
            return
        wire, reading = self._wire, self._reading
        assert self._pulled is not None
        try:
            while not self.pending and not wire.paused and not self.over:
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
            wire.blocked[self] = None
            if reading is not None:
                reading.since = monotonic()

    # What servicers use.

    async def pull(self, draw: Callable[[], Any], reading: Reading | None = None) -> None:
        """Draws messages while there is room, and again when `rouse` was called: `draw` gives one, or None, or EOF.

        `reading` is told since when there is no room.
        """
        pulled = self._pulled = self._connection.loop.create_future()
        self._draw, self._reading = draw, reading
        self.draw()
        if self.over:
            raise asyncio.CancelledError
        try:
            await pulled
        finally:
            self._draw = None

    def rouse(self) -> None:
        """Has it drawn from at the end of the turn."""
        self._connection.ready(self)

    def say(self, message: bytes) -> bool:
        """Writes a message at once, before those that would be drawn; False where there is no room for it now."""
        connection = self._connection
        if self.over or len(message) > connection.most_out or not self._wire.message(self, message):
            return False
        if not connection.due:
            connection.soon()
        return True

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

    async def send_initial_metadata(self, metadata: Metadata) -> None:
        """Begins the answer."""
        if not self.stream.state_machine.headers_sent and not self.over:
            self._begin(metadata)

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

    def _start(self, message: bytes | None) -> None:
        """Has it served: of the one message that came, or None where it reads them itself."""
        handler, direct, chain, name = self._handler, self._head.direct, self._connection.chain, self._head.method
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
        self._task = self._connection.loop.create_task(self._serve(method, request), context=self._context)

    async def _serve(self, method: Callable[[Any, Call], Awaitable[Any]], request: Any) -> None:
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

    def _put(self, message: Any) -> None:
        """Writes a message, or keeps it until there is room."""
        data, wire = self._handler.response_serializer(message), self._wire
        size = len(data)
        if size > self._connection.most_out:
            self._refuse(
                _CODE.RESOURCE_EXHAUSTED, f"Sent message larger than max ({size} vs. {self._connection.most_out})"
            )
            return
        if not self.stream.state_machine.headers_sent:
            self._begin(())
        if wire.message(self, data):
            self._connection.soon()
            return
        self.pending.append(memoryview(b"\0" + size.to_bytes(4, "big") + data))
        self._push()

    def _push(self) -> None:
        """Writes of what waits as much as there is room for."""
        pending = self.pending
        while pending:
            view = pending[0]
            written = self._wire.data(self, view)
            if written:
                self.since = monotonic()
                if self._reading is not None and self._reading.since is not None:
                    self._reading.since = self.since
                self._connection.soon()
            if written < len(view):
                pending[0] = view[written:]
                # Behind the others that wait.
                self._wire.blocked.pop(self, None)
                self._wire.blocked[self] = None
                return
            pending.popleft()

    def _begin(self, metadata: Metadata) -> None:
        self._wire.headers(self, heads.began(metadata) if metadata else heads.BEGAN, end=False)
        self._connection.soon()

    def _refuse(self, code: grpc.StatusCode, details: str) -> None:
        """Ends the call with an error that no servicer decided."""
        if not self.over:
            self._code, self._details, self._trailing = code, details, ()
            self._finish()
            if self._task is not None and self._task is not asyncio.current_task():
                self._task.cancel()

    def _finish(self) -> None:
        """Says the status, behind what waits; an error behind no more of it than a message that was begun."""
        if self.over:
            return
        self.over = True
        self._count()
        code, began = self._code, self.stream.state_machine.headers_sent
        if code is _CODE.OK and not self._details and not self._trailing and began:
            self._left = heads.ENDED
        else:
            self._left = heads.ended(code, self._details, tuple(self._trailing), began=bool(began))
        if code is not _CODE.OK and self.pending:
            first = self.pending[0]
            self.pending.clear()
            if len(first) < len(memoryview(first.obj)):
                self.pending.append(first)
        self.since = monotonic()
        self.go_on()

    def _leave(self) -> None:
        """Writes the status: the end of the call."""
        wire, left = self._wire, self._left
        assert left is not None
        self._left = None
        wire.headers(self, left, end=True)
        if self.stream.state_machine.state != StreamState.CLOSED:
            # RFC 9113 §8.1: nobody reads the rest of what the client may still say.
            wire.reset(self.number, ErrorCodes.NO_ERROR)
        wire.forget(self)
        wire.answered()
        self._closed()
        self._connection.soon()

    def _count(self) -> None:
        """Counts it, where no task does."""
        counted, self._counted = self._counted, None
        if counted is not None:
            counted(self._code.name)

    def _closed(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self.promised:
            self._connection.kept(self)
        self.parts = None
        self._inbox.clear()
        self._connection.closed(self)
