"""One call over HTTP/2: what of it comes and leaves, and when there is room."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import grpc
from h2.errors import ErrorCodes
from h2.stream import H2Stream, StreamState

from statestream_server.caller import Caller
from statestream_server.edges.grpc.served import Metadata
from statestream_server.edges.h2 import heads
from statestream_server.edges.h2.heads import Head
from statestream_server.edges.h2.messages import Messages

if TYPE_CHECKING:
    from statestream_server.edges.h2.connection import Connection

_CODE: Final = grpc.StatusCode


class Call(Messages):
    """A call of a connection, from its first frame to its last."""

    __slots__ = ("_deadline", "_left", "pending", "since", "usual")

    def __init__(self, connection: Connection, stream: H2Stream, head: Head, who: Caller) -> None:
        """A call of `who` that began with `head`."""
        super().__init__(connection, stream, head, who)
        self.usual = False  # Whether the short path may take its DATA.
        self.pending: deque[memoryview] = deque()  # What waits for room to be written.
        self.since = 0.0  # When what waits last moved, by `time.monotonic`.
        self._left: bytes | None = None  # The headers that end it, while they wait.
        self._deadline: asyncio.TimerHandle | None = None

    # What the wire tells.

    def begin(self) -> None:
        """It may be served."""
        if self._head.refusal is not None:
            self.over, self._left = True, self._head.refusal
            self.go_on()
            return
        if self._head.timeout is not None:
            self._deadline = self._loop.call_later(
                self._head.timeout, self._refuse, _CODE.DEADLINE_EXCEEDED, "Deadline Exceeded"
            )
        if self._streams:
            self._start(None)

    def half_closed(self) -> None:
        """The client has said all."""
        if self.parts is not None:
            self._refuse(_CODE.INTERNAL, "the call ended within a message")
        super().half_closed()

    def lost(self) -> None:
        """The client gave it up, or its connection is gone."""
        self.over = True
        self._wire.forget(self)
        self.pending.clear()
        self._left = None
        self._closed()
        super().lost()

    def go_on(self) -> None:
        """Writes what waits, and behind it the end, as far as there is room."""
        self._push()
        if self.pending or self._wire.paused:
            self._wait()
            return
        self._wire.blocked.pop(self, None)
        if self._left is not None:
            self._leave()
        else:
            self.draw()

    # What servicers use.

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

    async def send_initial_metadata(self, metadata: Metadata) -> None:
        """Begins the answer."""
        if not self.stream.state_machine.headers_sent and not self.over:
            self._begin(metadata)

    # What leaves.

    def _has_room(self) -> bool:
        return not self.pending and not self._wire.paused

    def _wait(self) -> None:
        self._wire.blocked[self] = None

    def _put(self, message: Any) -> None:
        data = self._handler.response_serializer(message)
        size = len(data)
        if size > self._connection.most_out:
            self._refuse(
                _CODE.RESOURCE_EXHAUSTED, f"Sent message larger than max ({size} vs. {self._connection.most_out})"
            )
            return
        if not self.stream.state_machine.headers_sent:
            self._begin(())
        if self._wire.message(self, data):
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
                self._wait()
                return
            pending.popleft()

    def _begin(self, metadata: Metadata) -> None:
        self._wire.headers(self, heads.began(metadata) if metadata else heads.BEGAN, end=False)
        self._connection.soon()

    def _end(self) -> None:
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

    def _closed(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self.promised:
            self._connection.kept(self)
        self.parts = None
        self._inbox.clear()
        self._connection.closed(self)
