"""The messages of one call that come: how much of them may, and when; `call` is the whole of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from h2.stream import H2Stream

from statestream_server.caller import Caller
from statestream_server.edges.grpc.prefixed import Parts, Refused
from statestream_server.edges.grpc.served import Served
from statestream_server.edges.h2.floods import STREAM_WINDOW
from statestream_server.edges.h2.heads import Head

if TYPE_CHECKING:
    from statestream_server.edges.h2.connection import Connection


class Messages(Served):
    """A call's messages, until somebody takes them."""

    __slots__ = ("_connection", "_head", "_held", "_wire", "number", "parts", "promised", "stream", "wide", "window")

    def __init__(self, connection: Connection, stream: H2Stream, head: Head, who: Caller) -> None:
        """None came."""
        super().__init__(connection.loop, connection.chain, connection.most_in, head, who)
        self._connection = connection
        self._wire = connection.wire
        self._head = head
        self.number: int = stream.stream_id
        self.stream = stream
        self.window = stream._inbound_window_manager
        self.promised = 0  # Bytes of a long message that may come beyond the stream's window.
        self.wide = 0  # Bytes of that window beyond the one that every stream has.
        self.parts: Parts | None = None  # Of a message that is not whole.
        self._held = 0  # Bytes of the window that came and are not taken.

    def arrived(self, data: bytes, begin: int, end: int) -> None:
        """Bytes of messages came."""
        if self.over or begin == end:
            return
        self._held += end - begin
        parts = self.parts
        if parts is None:
            parts = self.parts = Parts(self._most_in, gzip=self._head.gzip)
        parts.add(data, begin, end)
        try:
            more = all(self._whole(message, size) for message, size in parts.whole())
        except Refused as error:
            self._refuse(error.code, error.details)
            more = False
        if not more or not parts:
            self.parts = None
            return
        want = parts.missing - self.window.current_window_size
        if want > 0 and not self.promised:
            self._connection.promise(self, want)

    def _whole(self, message: bytes, size: int) -> bool:
        """A message is whole, of which `size` bytes were counted as held; whether the next one is wanted."""
        self._held -= size
        if self.promised:
            self._connection.kept(self)
            if self._streams:
                self._connection.widen(self, size)
        self.came(message, size)
        return not self.over

    def _kept(self, size: int) -> None:
        self._held += size

    def _taken(self, size: int) -> None:
        """So many bytes of the window are free again: the client hears so when they are half of it."""
        self._held -= size
        most = STREAM_WINDOW + self.wide
        free = most - self.window.current_window_size - self._held
        if free >= most // 2:
            self._wire.grant(self, free)
