"""HTTP/2 frame by frame over a socket: a client that keeps no rule, so that the server's are what is tested."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import hpack
from google.protobuf.message import Message
from hyperframe import frame as frames
from hyperframe.frame import Frame

from tests.support.calls import DEADLINE

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
STREAM: Final = "/statestream.v1.InferenceService/Stream"
INFO: Final = "/statestream.v1.ServerService/GetServerInfo"
PREDICT: Final = "/statestream.v1.InferenceService/Predict"

# Error codes of RFC 9113, section 7.
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT, STREAM_CLOSED, FRAME_SIZE_ERROR = range(
    7
)
REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, CONNECT_ERROR, ENHANCE_YOUR_CALM = range(7, 12)

Part = Frame | bytes


def headers_of(path: str, **more: str) -> list[tuple[str, str]]:
    """The header list of a gRPC call."""
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *((name.replace("_", "-"), value) for name, value in more.items()),
    ]


def enveloped(message: Message | bytes) -> bytes:
    """A message as gRPC writes it into DATA: a flag, its length, its bytes."""
    data = message if isinstance(message, bytes) else message.SerializeToString()
    return struct.pack(">BI", 0, len(data)) + data


def raw(kind: int, flags: int, stream: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """A frame whose parts need not fit each other."""
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def settings(*pairs: tuple[int, int], ack: bool = False) -> bytes:
    """A SETTINGS frame."""
    return raw(4, int(ack), 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def ping(data: bytes = b"alive?..", *, ack: bool = False) -> bytes:
    return raw(6, int(ack), 0, data)


def reset(stream: int, code: int = CANCEL) -> bytes:
    return raw(3, 0, stream, struct.pack(">I", code))


def window(stream: int, more: int) -> bytes:
    return raw(8, 0, stream, struct.pack(">I", more))


def data(stream: int, payload: bytes = b"", *, end: bool = False) -> bytes:
    return raw(0, int(end), stream, payload)


def block(headers: Iterable[tuple[str, str]]) -> bytes:
    """A header block of literals, which no table remembers; names and values are as they are, of any kind."""
    return b"".join(literal(name.encode(), value.encode()) for name, value in headers)


def literal(name: bytes, value: bytes, first: int = 0) -> bytes:
    return bytes((first,)) + _string(name) + _string(value)


def integer(value: int, bits: int, first: int = 0) -> bytes:
    """An integer of HPACK with a prefix of so many bits."""
    most = (1 << bits) - 1
    if value < most:
        return bytes((first | value,))
    found, value = bytearray((first | most,)), value - most
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*found, value))


def _string(text: bytes) -> bytes:
    return integer(len(text), 7) + text


def call(stream: int, path: str, *, end: bool = False, **more: str) -> bytes:
    """The HEADERS that begin a gRPC call."""
    return raw(1, 0x4 | int(end), stream, block(headers_of(path, **more)))


@dataclass
class End:
    """How a connection ended.

    Attributes:
        code: Of the GOAWAY; None where none came.
        reason: What the GOAWAY said.
    """

    code: int | None = None
    reason: bytes = b""


@dataclass
class Wire:
    """One connection: sends what it is told, keeps what comes.

    Attributes:
        got: Every frame that came, in order.
        headers: The header lists that came, by stream, in order.
        end: How the connection ended; None while it stands.
    """

    address: str
    got: list[Frame] = field(default_factory=list)
    headers: dict[int, list[list[tuple[str, str]]]] = field(default_factory=dict)
    end: End | None = None

    async def open(self) -> Wire:
        host, _, port = self.address.rpartition(":")
        self._reader, self._writer = await asyncio.open_connection(host, int(port))
        self._decoder, self._goaway = hpack.Decoder(), End()
        self._block = b""
        self._news = asyncio.Condition()
        self._pump_task = asyncio.create_task(self._pump())
        return self

    async def close(self) -> None:
        self._pump_task.cancel()
        await asyncio.gather(self._pump_task, return_exceptions=True)
        self._writer.transport.abort()

    async def greet(self, *pairs: tuple[int, int]) -> None:
        """Preface and SETTINGS, and the acknowledgement of the server's."""
        await self.send(PREFACE, settings(*pairs))
        await self.until(lambda: any(isinstance(one, frames.SettingsFrame) for one in self.got))
        await self.send(settings(ack=True))

    async def send(self, *parts: Part, patience: float = DEADLINE) -> bool:
        """Writes all at once; False where the server takes no more, or takes nothing for so long."""
        self._writer.write(b"".join(one if isinstance(one, bytes) else one.serialize() for one in parts))
        try:
            await asyncio.wait_for(self._writer.drain(), patience)
        except (OSError, TimeoutError):
            return False
        return self.end is None

    async def until(self, wanted: Callable[[], object], seconds: float = DEADLINE) -> bool:
        """Waits until something holds, or the connection ends; whether it holds."""
        async with self._news:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait_for(lambda: wanted() or self.end is not None), seconds)
        return bool(wanted())

    async def ended(self, seconds: float = DEADLINE) -> End | None:
        """How the server ended the connection; None where it did not within so long."""
        await self.until(lambda: self.end is not None, seconds)
        return self.end

    async def alive(self, data: bytes = b"still..?") -> bool:
        """Whether a ping is answered."""
        await self.send(ping(data))
        return await self.until(
            lambda: any(
                isinstance(one, frames.PingFrame) and "ACK" in one.flags and one.opaque_data == data for one in self.got
            )
        )

    def of(self, kind: type[Frame], stream: int) -> list[Frame]:
        """The frames of a kind that came on a stream."""
        return [one for one in self.got if isinstance(one, kind) and one.stream_id == stream]

    def reset_of(self, stream: int) -> int | None:
        """The code with which the server reset a stream."""
        found = self.of(frames.RstStreamFrame, stream)
        return found[0].error_code if found else None  # type: ignore[attr-defined]

    def status(self, stream: int) -> str | None:
        """The gRPC status of a stream, where trailers told it."""
        for one in self.headers.get(stream, ()):
            if (found := dict(one).get("grpc-status")) is not None:
                return found
        return None

    def body(self, stream: int) -> bytes:
        """All data of a stream."""
        return b"".join(one.data for one in self.of(frames.DataFrame, stream))  # type: ignore[attr-defined]

    async def answered(self, stream: int, seconds: float = DEADLINE) -> bool:
        """Waits for the end of a stream: its status, or a reset."""
        return await self.until(lambda: self.status(stream) is not None or self.reset_of(stream) is not None, seconds)

    async def _pump(self) -> None:
        try:
            while True:
                head = await self._reader.readexactly(9)
                one, length = Frame.parse_frame_header(memoryview(head))
                one.parse_body(memoryview(await self._reader.readexactly(length)))
                self._take(one)
                async with self._news:
                    self._news.notify_all()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.end = self._goaway
            async with self._news:
                self._news.notify_all()

    def _take(self, one: Frame) -> None:
        self.got.append(one)
        if isinstance(one, frames.GoAwayFrame):
            self._goaway.code, self._goaway.reason = one.error_code, bytes(one.additional_data)
        elif isinstance(one, (frames.HeadersFrame, frames.ContinuationFrame)):
            self._block += one.data
            if "END_HEADERS" in one.flags:
                decoded = [(str(name), str(value)) for name, value in self._decoder.decode(self._block)]
                self.headers.setdefault(one.stream_id, []).append(decoded)
                self._block = b""


@contextlib.asynccontextmanager
async def wired(address: str, *pairs: tuple[int, int], greet: bool = True) -> AsyncIterator[Wire]:
    """A connection to a server, over which preface and SETTINGS were exchanged."""
    wire = await Wire(address).open()
    try:
        if greet:
            await wire.greet(*pairs)
        yield wire
    finally:
        await wire.close()


def messages(body: bytes) -> Sequence[bytes]:
    """The gRPC messages in the data of a stream."""
    found = []
    while body:
        length = int.from_bytes(body[1:5], "big")
        found.append(body[5 : 5 + length])
        body = body[5 + length :]
    return found
