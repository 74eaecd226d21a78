"""The messages of one call that come: put together, unpacked, counted, and handed over; `call` is the whole of it."""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from collections.abc import Callable
from contextvars import Context as Variables
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc
from h2.stream import H2Stream

from statestream_server.edges.h2.floods import STREAM_WINDOW
from statestream_server.edges.h2.heads import Head

if TYPE_CHECKING:
    from statestream_server.edges.h2.connection import Connection

_CODE: Final = grpc.StatusCode
_VIEWED: Final = 4096
"""Bytes of a part that is kept as it came; shorter ones are gathered, lest there are very many."""
Part: TypeAlias = "bytes | bytearray | memoryview"


class Messages:
    """A call's messages, until somebody takes them."""

    __slots__ = (
        "_connection", "_context", "_ended", "_handler", "_head", "_held", "_inbox", "_size", "_streams", "_take",
        "_waiter", "_wanted", "_wire", "number", "over", "parts", "promised", "stream", "wide", "window",
    )  # fmt: skip

    def __init__(self, connection: Connection, stream: H2Stream, head: Head) -> None:
        """None came."""
        self.over = False  # Whether all is said but what waits for room.
        self._connection = connection
        self._head = head
        self.number: int = stream.stream_id
        self.stream = stream
        self.window = stream._inbound_window_manager
        self.promised = 0  # Bytes of a long message that may come beyond the stream's window.
        self.wide = 0  # Bytes of that window beyond the one that every stream has.
        self._wire = connection.wire
        self._handler = handler = head.handler
        """As grpcio has handlers; None where there is none, and the head says why."""
        self._streams = handler is not None and handler.request_streaming
        self.parts: list[Part] | None = None  # Of a message that is not whole.
        self._size = self._wanted = 0  # Bytes of the parts; how many they are to be before it is worth a look.
        self._inbox: deque[tuple[bytes, int]] = deque()
        """Messages that are not taken yet, and how many bytes of the window each had."""
        self._held = 0  # Bytes of the window that came and are not taken.
        self._ended = False  # Whether the client has said all.
        self._waiter: asyncio.Future[bool] | None = None  # Resolved when there is something to read; False for an end.
        self._take: Callable[[Any], object] | None = None
        self._context: Variables | None = None

    def came(self, message: bytes, size: int) -> None:
        """A message is whole; it took `size` bytes of the window."""
        if self.over:
            return
        if size - 5 > self._connection.most_in:
            self._refuse_size(size - 5)
            return
        take = self._take
        if take is None:
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
        self._held += size
        if self._inbox and not self._streams:
            self._refuse(_CODE.UNIMPLEMENTED, "the call has several messages; expected one")
            return
        self._inbox.append((message, size))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    def arrived(self, data: bytes, begin: int, end: int) -> None:
        """Bytes of messages came."""
        size = end - begin
        if self.over or not size:
            return
        self._held += size
        if self.parts is None:
            self.parts, self._size, self._wanted = [], 0, 5
        parts = self.parts
        if size >= _VIEWED:
            # A view where it is most of what was read: one of little would keep all of it.
            parts.append(memoryview(data)[begin:end] if 2 * size >= len(data) else data[begin:end])
        elif parts and type(parts[-1]) is bytearray:
            parts[-1] += data[begin:end]
        else:
            parts.append(bytearray(data[begin:end]))
        self._size += size
        if self._size >= self._wanted:
            self._unpack(parts)
        else:
            self._promise(self._wanted - self._size)

    def _unpack(self, parts: list[Part]) -> None:
        """Hands over the messages that are whole; what is left of the parts waits for more."""
        if self._wanted > 5 and self._size == self._wanted and not parts[0][0] and len(parts[0]) >= 5:
            # The usual end of a large message: its bytes are copied once.
            parts[0] = memoryview(parts[0])[5:]
            self.parts = None
            self._whole(b"".join(parts), self._size)
            return
        data, at = b"".join(parts), 0
        while self._size - at >= 5 and not self.over:
            size = 5 + int.from_bytes(data[at + 1 : at + 5], "big")
            if size - 5 > self._connection.most_in:
                self._refuse_size(size - 5)
                return
            if at + size > self._size:
                self._wanted = size
                self._promise(at + size - self._size)
                break
            self._wanted = 5
            message: bytes | None = data[at + 5 : at + size]
            if data[at] and (message := self._inflated(data[at], message or b"")) is None:
                return
            at += size
            self._whole(message or b"", size)
        if at == self._size or self.over:
            self.parts = None
        elif at:
            self.parts, self._size = [data[at:]], self._size - at
        else:
            self.parts = [data]

    def _promise(self, more: int) -> None:
        """Asks for room for the rest of a message."""
        want = more - self.window.current_window_size
        if want > 0 and not self.promised:
            self._connection.promise(self, want)

    def _whole(self, message: bytes, size: int) -> None:
        """A message is whole that came in parts, of which `size` bytes were counted as held."""
        self._held -= size
        if self.promised:
            self._connection.kept(self)
            if self._streams:
                self._connection.widen(self, size)
        self.came(message, size)

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
        self._waiter = self._connection.loop.create_future()
        try:
            return await self._waiter
        finally:
            self._take = self._waiter = None

    async def read(self) -> Any:
        """The next message; `grpc.aio.EOF` once the client has half-closed."""
        found = list[Any]()
        await self.feed(found.append)
        return found[0] if found else grpc.aio.EOF

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> Any:
        message = await self.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message

    def _taken(self, size: int) -> None:
        """So many bytes of the window are free again: the client hears so when they are half of it."""
        self._held -= size
        most = STREAM_WINDOW + self.wide
        free = most - self.window.current_window_size - self._held
        if free >= most // 2:
            self._wire.grant(self, free)

    def _inflated(self, flag: int, message: bytes) -> bytes | None:
        """A compressed message as it was; None where it is refused."""
        if flag != 1 or not self._head.gzip:
            self._refuse(_CODE.INTERNAL, "a message is marked as compressed, and grpc-encoding does not say how")
            return None
        most = self._connection.most_in
        try:
            stream = zlib.decompressobj(wbits=31)
            found = stream.decompress(message, most + 1)
            whole = stream.eof and not stream.unused_data
        except zlib.error:
            found, whole = b"", False
        if len(found) > most:
            self._refuse(_CODE.RESOURCE_EXHAUSTED, f"Received message larger than max (more than {most}, unpacked)")
            return None
        if not whole:
            self._refuse(_CODE.INTERNAL, "a message is no gzip")
            return None
        return found

    def _refuse_size(self, size: int) -> None:
        most = self._connection.most_in
        self._refuse(_CODE.RESOURCE_EXHAUSTED, f"Received message larger than max ({size} vs. {most})")

    def _refuse(self, code: grpc.StatusCode, details: str) -> None:
        """Ends the call with an error that no servicer decided."""
        raise NotImplementedError  # A call has a way to end, see `call`; its messages alone have none.
