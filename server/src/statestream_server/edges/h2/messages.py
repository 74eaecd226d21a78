"""The messages of one call that come: put together, unpacked, counted, and handed over; `call` is the whole of it."""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from collections.abc import Callable
from contextvars import Context as Variables
from typing import TYPE_CHECKING, Any, Final

import grpc
from h2.stream import H2Stream

from statestream_server.edges.h2.floods import STREAM_WINDOW
from statestream_server.edges.h2.heads import Head

if TYPE_CHECKING:
    from statestream_server.edges.h2.connection import Connection

_CODE: Final = grpc.StatusCode


class Messages:
    """A call's messages, until somebody takes them."""

    __slots__ = (
        "_connection", "_context", "_ended", "_handler", "_head", "_held", "_inbox", "_parts", "_streams", "_take",
        "_waiter", "_wire", "number", "over", "promised", "stream", "window",
    )  # fmt: skip

    def __init__(self, connection: Connection, stream: H2Stream, head: Head) -> None:
        """None came."""
        self.over = False  # Whether all is said but what waits for room.
        self._connection = connection
        self._head = head
        self.number: int = stream.stream_id
        self.stream = stream
        self.window = stream._inbound_window_manager
        self.promised = 0  # Bytes of a long message that may come beyond the window that every stream has.
        self._wire = connection.wire
        self._handler = handler = head.handler
        """As grpcio has handlers; None where there is none, and the head says why."""
        self._streams = handler is not None and handler.request_streaming
        self._parts: bytearray | None = None
        self._inbox: deque[tuple[bytes, int]] = deque()
        """Messages that are not taken yet, and how many bytes of the window each had."""
        self._held = 0  # Bytes of the window that came and are not taken.
        self._ended = False  # Whether the client has said all.
        self._waiter: asyncio.Future[bool] | None = None  # Resolved when there is something to read; False for an end.
        self._take: Callable[[Any], object] | None = None
        self._context: Variables | None = None

    def arrived(self, data: bytes, begin: int, end: int) -> None:
        """Bytes of messages came."""
        if self.over:
            return
        size = end - begin
        self._held += size
        if self._parts is None:
            if (
                size >= 5
                and data[begin] == 0
                and int.from_bytes(data[begin + 1 : begin + 5], "big") == size - 5 <= self._connection.most_in
            ):
                self._came(data[begin + 5 : end], size)
                return
            self._parts = bytearray()
        parts, at = self._parts, 0
        parts += data[begin:end]
        whole = len(parts)
        while whole - at >= 5 and not self.over:
            size = 5 + int.from_bytes(parts[at + 1 : at + 5], "big")
            if size - 5 > self._connection.most_in:
                self._refuse(
                    _CODE.RESOURCE_EXHAUSTED,
                    f"Received message larger than max ({size - 5} vs. {self._connection.most_in})",
                )
                return
            if at + size > whole:
                self._promise(at + size - whole)
                break
            with memoryview(parts) as view:
                message: bytes | None = bytes(view[at + 5 : at + size])
            if parts[at] and (message := self._inflated(parts[at], message or b"")) is None:
                return
            at += size
            if self.promised:
                self._connection.kept(self)
            self._came(message or b"", size)
        if at == whole:
            self._parts = None
        elif at:
            del parts[:at]

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

    def _came(self, message: bytes, size: int) -> None:
        """A message is whole; it took `size` bytes of the window."""
        take = self._take
        if take is not None:
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
            self._taken(size)
            return
        if self._inbox and not self._streams:
            self._refuse(_CODE.UNIMPLEMENTED, "the call has several messages; expected one")
            return
        self._inbox.append((message, size))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    def _taken(self, size: int) -> None:
        """So many bytes of the window are free again: the client hears so when they are half of it."""
        self._held -= size
        free = STREAM_WINDOW - self.window.current_window_size - self._held
        if free >= STREAM_WINDOW // 2:
            self._wire.grant(self, free)

    def _promise(self, missing: int) -> None:
        """Lets the rest of a message come that is longer than the window."""
        want = missing - self.window.current_window_size
        if want > 0 and not self.promised:
            self._connection.promise(self, want)

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

    def _refuse(self, code: grpc.StatusCode, details: str) -> None:
        """Ends the call with an error that no servicer decided."""
        raise NotImplementedError  # A call has a way to end, see `call`; its messages alone have none.
