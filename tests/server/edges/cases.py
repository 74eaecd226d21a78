"""What RFC 9113 and RFC 7541 say of frames that come, case by case: sent is what a client sends, wanted what must come.

The cases are those that HTTP/2 conformance suites (h2spec) know, with the sections of RFC 9113 in place of RFC 7540's.
Stream 1 is a call of GetServerInfo unless a case says otherwise.
"""

# A case is a line, however long.
# ruff: noqa: E501

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.support import http2
from tests.support.http2 import (
    COMPRESSION_ERROR,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    INFO,
    PROTOCOL_ERROR,
    STREAM,
    STREAM_CLOSED,
    block,
    call,
    data,
    enveloped,
    headers_of,
    literal,
    raw,
    reset,
    settings,
    window,
)


@dataclass(frozen=True)
class Broken:
    """The connection ends by GOAWAY with one of these codes."""

    codes: Sequence[int]


@dataclass(frozen=True)
class Refused:
    """The stream is reset with one of these codes, or the connection ends with it."""

    codes: Sequence[int]
    stream: int = 1


@dataclass(frozen=True)
class Answered:
    """The call on a stream ends with one of these statuses, and the connection goes on."""

    statuses: Sequence[int] = (0,)
    stream: int = 1


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        section: Of RFC 9113, of RFC 7541 with "HPACK", or of gRPC's own with "gRPC".
    """

    section: str
    what: str
    sent: bytes
    wanted: Broken | Refused | Answered
    before: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        return f"{self.section}: {self.what}"


def whole(stream: int = 1, path: str = INFO, message: Any = b"") -> bytes:
    """A call of one message."""
    return call(stream, path) + data(stream, enveloped(message), end=True)


def headers(fields: Sequence[tuple[str, str]], stream: int = 1, *, end: bool = False) -> bytes:
    return raw(1, 0x4 | int(end), stream, block(fields))


def changed(without: str = "", *, first: Sequence[tuple[str, str]] = (), last: Sequence[tuple[str, str]] = ()) -> bytes:
    """A call whose header list lacks a name, or has more."""
    fields = [pair for pair in headers_of(INFO) if pair[0] != without]
    return headers([*first, *fields, *last]) + data(1, enveloped(b""), end=True)


PROTOCOL, SIZE, FLOW = Broken([PROTOCOL_ERROR]), Broken([FRAME_SIZE_ERROR]), Broken([FLOW_CONTROL_ERROR])
COMPRESSION: Final = Broken([COMPRESSION_ERROR, PROTOCOL_ERROR])
"""The RFC wants the first; the library h2 says the second."""
MALFORMED: Final = Refused([PROTOCOL_ERROR])
CLOSED: Final = Refused([STREAM_CLOSED, PROTOCOL_ERROR])
"""A stream that is over: RFC 9113, section 5.1 leaves open which, where too much is forgotten of it."""
OPEN, HEAD = call(1, STREAM), block(headers_of(INFO))
HALF = raw(1, 0, 1, HEAD[:20])
"""A header block that is not over."""
MOST = (1 << 31) - 1

CASES: Final = [
    # Frames.
    Case("4.1", "a frame of an unknown kind", raw(0x42, 0xFF, 0, b"anything") + whole(), Answered()),
    Case("4.1", "a frame of an unknown kind on a stream", OPEN + raw(0x42, 0, 1, b"x") + data(1, end=True), Answered()),
    Case("4.1", "flags that mean nothing", raw(6, 0x16, 0, bytes(8)) + whole(), Answered()),
    Case("4.1", "the reserved bit of a stream", raw(6, 0, 1 << 31, bytes(8)) + whole(), Answered()),
    Case("4.2", "DATA of 2^14", OPEN + data(1, enveloped(bytes(16_379))) + whole(3), Answered(stream=3)),
    Case("4.2", "a PING of 6 bytes", raw(6, 0, 0, bytes(6)), SIZE),
    Case("4.3", "a header block that is none", raw(1, 5, 1, b"\x00\x85\xf2\xb2\x4a\x84\xff\x84"), COMPRESSION),
    Case("4.3", "PRIORITY within a header block", HALF + raw(2, 0, 1, bytes(4) + b"\xff"), PROTOCOL),
    Case("4.3", "HEADERS of another stream within a header block", HALF + call(3, INFO), PROTOCOL),
    Case("4.3", "an unknown frame within a header block", HALF + raw(0x42, 0, 0, bytes(8)), PROTOCOL),
    Case("4.3", "a PING within a header block", HALF + http2.ping(), PROTOCOL),
    # Streams.
    Case("5.1", "DATA on an idle stream", data(1, b"x", end=True), Broken([PROTOCOL_ERROR, STREAM_CLOSED])),
    Case("5.1", "RST_STREAM on an idle stream", reset(1), PROTOCOL),
    Case("5.1", "WINDOW_UPDATE on an idle stream", window(1, 100), PROTOCOL),
    Case("5.1", "CONTINUATION on an idle stream", raw(9, 4, 1, HEAD), PROTOCOL),
    Case("5.1", "DATA on a half-closed stream", OPEN + data(1, end=True) + data(1, b"x"), CLOSED),
    Case("5.1", "HEADERS on a half-closed stream", OPEN + data(1, end=True) + call(1, STREAM), CLOSED),
    Case("5.1", "DATA on a stream that was reset", OPEN + reset(1) + data(1, b"x") + whole(3), Answered(stream=3)),
    Case("5.1", "HEADERS on a stream that was reset", OPEN + reset(1) + call(1, STREAM), CLOSED),
    Case("5.1", "CONTINUATION on a stream that was reset", OPEN + reset(1) + raw(9, 4, 1, HEAD), CLOSED),
    Case("5.1", "RST_STREAM again", OPEN + reset(1) + reset(1) + whole(3), Answered(stream=3)),
    Case("5.1", "WINDOW_UPDATE after RST_STREAM", OPEN + reset(1) + window(1, 9) + whole(3), Answered(stream=3)),
    Case("5.1.1", "an even stream", whole(2), PROTOCOL),
    Case("5.1.1", "a stream below the last", whole(5) + whole(3), Broken([PROTOCOL_ERROR, STREAM_CLOSED])),
    Case("5.3", "a stream that depends on itself is no matter", raw(2, 0, 1, b"\0\0\0\3\xff") + whole(), Answered()),
    Case("5.5", "extensions are ignored", raw(0x16, 0, 0, bytes(4)) + whole(), Answered()),
    # DATA, HEADERS, PRIORITY, RST_STREAM.
    Case("6.1", "DATA on stream 0", data(0, b"x"), PROTOCOL),
    Case("6.1", "padding longer than DATA", OPEN + raw(0, 8, 1, b"\xff12345"), PROTOCOL),
    Case("6.1", "DATA with padding", call(1, INFO) + raw(0, 9, 1, b"\x04" + enveloped(b"") + bytes(4)), Answered()),
    Case("6.1", "DATA of padding alone", call(1, INFO) + raw(0, 8, 1, b"\x00") + data(1, enveloped(b""), end=True), Answered()),
    Case("6.2", "HEADERS on stream 0", raw(1, 5, 0, HEAD), PROTOCOL),
    Case("6.2", "padding longer than HEADERS", raw(1, 0xD, 1, b"\xff" + HEAD[:10]), PROTOCOL),
    Case("6.2", "HEADERS with padding and priority", raw(1, 0x2C, 1, b"\x03\0\0\0\0\x10" + HEAD + bytes(3)) + data(1, enveloped(b""), end=True), Answered()),
    Case("6.3", "PRIORITY on stream 0", raw(2, 0, 0, bytes(5)), PROTOCOL),
    Case("6.3", "PRIORITY of 4 bytes", OPEN + raw(2, 0, 1, bytes(4)), Refused([FRAME_SIZE_ERROR])),
    Case("6.4", "RST_STREAM on stream 0", reset(0), PROTOCOL),
    Case("6.4", "RST_STREAM of 3 bytes", OPEN + raw(3, 0, 1, bytes(3)), SIZE),
    # SETTINGS.
    Case("6.5", "an acknowledgement with a payload", raw(4, 1, 0, bytes(6)), Broken([FRAME_SIZE_ERROR, PROTOCOL_ERROR])),
    Case("6.5", "SETTINGS on a stream", raw(4, 0, 1), PROTOCOL),
    Case("6.5", "SETTINGS of 5 bytes", raw(4, 0, 0, bytes(5)), SIZE),
    Case("6.5.2", "ENABLE_PUSH of 2", settings((2, 2)), PROTOCOL),
    Case("6.5.2", "INITIAL_WINDOW_SIZE of 2^31", settings((4, 1 << 31)), FLOW),
    Case("6.5.2", "MAX_FRAME_SIZE below 2^14", settings((5, (1 << 14) - 1)), PROTOCOL),
    Case("6.5.2", "MAX_FRAME_SIZE of 2^24", settings((5, 1 << 24)), PROTOCOL),
    Case("6.5.2", "an unknown setting", settings((0xFF, 1)) + whole(), Answered()),
    Case("6.5.3", "the last value of one setting counts", settings((4, 0), (4, 1 << 16)) + whole(), Answered()),
    # PUSH_PROMISE, PING, GOAWAY.
    Case("8.4", "PUSH_PROMISE from a client", OPEN + raw(5, 4, 1, struct.pack(">I", 2) + HEAD), PROTOCOL),
    Case("6.7", "PING on a stream", raw(6, 0, 1, bytes(8)), PROTOCOL),
    Case("6.7", "an acknowledgement nobody asked for", http2.ping(ack=True) + whole(), Answered()),
    Case("6.8", "GOAWAY on a stream", raw(7, 0, 1, bytes(8)), PROTOCOL),
    # WINDOW_UPDATE.
    Case("6.9", "a window of 0 more", window(0, 0), PROTOCOL),
    Case("6.9", "a stream's window of 0 more", OPEN + window(1, 0), MALFORMED),
    Case("6.9", "WINDOW_UPDATE of 3 bytes", raw(8, 0, 0, bytes(3)), SIZE),
    Case("6.9.1", "the connection's window above 2^31 − 1", window(0, MOST) + window(0, MOST), FLOW),
    Case("6.9.1", "a stream's window above 2^31 − 1", OPEN + window(1, MOST) + window(1, MOST), Refused([FLOW_CONTROL_ERROR])),
    Case("6.9.2", "a setting that lifts a stream above 2^31 − 1", OPEN + window(1, MOST - 65_535) + settings((4, 65_536)), FLOW),
    Case("6.9.2", "a window that becomes negative, and is lifted", OPEN + settings((4, 0)) + whole(3) + window(3, 1 << 16), Answered(stream=3)),
    # CONTINUATION.
    Case("6.10", "a block in three frames", raw(1, 0, 1, HEAD[:9]) + raw(9, 0, 1, HEAD[9:30]) + raw(9, 4, 1, HEAD[30:]) + data(1, enveloped(b""), end=True), Answered()),
    Case("6.10", "CONTINUATION behind END_HEADERS", OPEN + raw(9, 4, 1, HEAD), PROTOCOL),
    Case("6.10", "CONTINUATION of another stream", HALF + raw(9, 4, 3, HEAD[20:]), PROTOCOL),
    Case("6.10", "CONTINUATION on stream 0", HALF + raw(9, 4, 0, HEAD[20:]), PROTOCOL),
    Case("6.10", "DATA within a block", HALF + data(1, b"x") + raw(9, 4, 1, HEAD[20:]), PROTOCOL),
    # What a request is.
    Case("8.1", "a second HEADERS that ends nothing", OPEN + headers([("x", "y")]), MALFORMED),
    Case("8.1", "trailers end a call", call(1, INFO) + data(1, enveloped(b"")) + headers([("x", "y")], end=True), Answered()),
    Case("8.2.1", "a name with a capital letter", changed(last=[("X-Test", "ok")]), MALFORMED),
    Case("8.2.1", "a name of no letters", changed(last=[("", "ok")]), MALFORMED),
    Case("8.2.1", "a value with a line feed", changed(last=[("x-test", "a\nb")]), MALFORMED),
    Case("8.2.2", "a header of the connection", changed(last=[("connection", "keep-alive")]), MALFORMED),
    Case("8.2.2", "te that is not trailers", changed("te", last=[("te", "trailers, deflate")]), MALFORMED),
    Case("8.3", "an unknown pseudo-header", changed(first=[(":test", "ok")]), MALFORMED),
    Case("8.3", "a response's pseudo-header", changed(first=[(":status", "200")]), MALFORMED),
    Case("8.3", "a pseudo-header in trailers", OPEN + headers([(":method", "POST")], end=True), MALFORMED),
    Case("8.3", "a pseudo-header behind others", changed(":path", last=[(":path", INFO)]), MALFORMED),
    Case("8.3.1", "an empty path", changed(":path", first=[(":path", "")]), MALFORMED),
    Case("8.3.1", "no method", changed(":method"), MALFORMED),
    Case("8.3.1", "no scheme", changed(":scheme"), MALFORMED),
    Case("8.3.1", "no path", changed(":path"), MALFORMED),
    Case("8.3.1", "a method twice", changed(first=[(":method", "POST")]), MALFORMED),
    Case("8.3.1", "a path twice", changed(first=[(":path", INFO)]), MALFORMED),
    Case("8.1.1", "a content-length that is not the data's", changed(last=[("content-length", "1")]), MALFORMED),
    # HPACK.
    Case("HPACK 2.3.3", "an index beyond the tables", raw(1, 5, 1, b"\xc6"), COMPRESSION),
    Case("HPACK 2.3.3", "a literal's name beyond the tables", raw(1, 5, 1, b"\x7f\x80\x01\x01x"), COMPRESSION),
    Case("HPACK 4.2", "a size update at the end of a block", raw(1, 5, 1, HEAD + b"\x3f\x01"), COMPRESSION),
    Case("HPACK 5.1", "an integer without end", raw(1, 5, 1, b"\xff" + b"\x80" * 30), COMPRESSION),
    Case("HPACK 5.2", "Huffman padding of more than 7 bits", raw(1, 5, 1, HEAD + b"\x00\x84\xf2\xb2\x4a\x84\x84\xf2\xb4\xa8\xff"), COMPRESSION),
    Case("HPACK 5.2", "Huffman padding with zeros", raw(1, 5, 1, HEAD + b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x25\x4c\x54"), COMPRESSION),
    Case("HPACK 5.2", "Huffman with the end of string", raw(1, 5, 1, HEAD + b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\xff\xff\xff\xff"), COMPRESSION),
    Case("HPACK 5.2", "a string longer than its block", raw(1, 5, 1, HEAD + b"\x00\x7f\xff\xff\xff\x07x"), COMPRESSION),
    Case("HPACK 6.1", "the index 0", raw(1, 5, 1, b"\x80"), COMPRESSION),
    Case("HPACK 6.3", "a table larger than SETTINGS allow", raw(1, 5, 1, http2.integer(1 << 24, 5, 0x20) + HEAD), COMPRESSION),
]  # fmt: skip

GRPC: Final = [
    Case("gRPC", "a path nobody serves", whole(path="/statestream.v1.InferenceService/Nothing"), Answered([12])),
    Case("gRPC", "a path that is none", whole(path="nothing"), Answered([12])),
    Case("gRPC", "no message", call(1, INFO, end=True), Answered([2, 12, 13])),
    Case("gRPC", "two messages for a unary call", call(1, INFO) + data(1, enveloped(b"") * 2, end=True), Answered([0, 12, 13])),
    Case("gRPC", "half a prefix", call(1, INFO) + data(1, b"\0\0", end=True), Answered([2, 3, 12, 13])),
    Case("gRPC", "half a message", call(1, INFO) + data(1, b"\0\0\0\0\x05ab", end=True), Answered([2, 3, 12, 13])),
    Case("gRPC", "a message that says 4 GiB", call(1, INFO) + data(1, b"\0\xff\xff\xff\xff" + bytes(64)), Answered([8])),
    Case("gRPC", "a flag that means nothing", call(1, INFO) + data(1, b"\x02" + enveloped(b"")[1:], end=True), Answered([2, 3, 12, 13])),
    Case("gRPC", "compressed without an encoding", call(1, INFO) + data(1, b"\x01\0\0\0\x01x", end=True), Answered([2, 3, 12, 13])),
    Case("gRPC", "an encoding nobody knows", call(1, INFO, grpc_encoding="zip") + data(1, b"\x01\0\0\0\x01x", end=True), Answered([12])),
    Case("gRPC", "gzip that is none", call(1, INFO, grpc_encoding="gzip") + data(1, b"\x01\0\0\0\x01x", end=True), Answered([2, 3, 8, 12, 13])),
    Case("gRPC", "a message in frames of a byte", call(1, INFO) + b"".join(data(1, enveloped(b"")[at : at + 1], end=at == 4) for at in range(5)), Answered()),
    Case("gRPC", "an end of its own", call(1, INFO) + data(1, enveloped(b"")) + data(1, end=True), Answered()),
    Case("gRPC", "bytes that are no message", call(1, INFO.replace("GetServerInfo", "GetStatistics")) + data(1, enveloped(b"\xff\xff"), end=True), Answered([3, 12, 13])),
    Case("gRPC", "a deadline that is over", call(1, STREAM, grpc_timeout="1n"), Answered([4])),
    Case("gRPC", "metadata in base64 that is none", call(1, INFO, x_some_bin="!!!") + data(1, enveloped(b""), end=True), Answered([0, 2, 3, 13])),
    Case("gRPC", "a stream whose caller says nothing", OPEN + data(1, end=True), Answered()),
]  # fmt: skip


def over(limit: int, stream: int = 1) -> bytes:
    """The head of a DATA frame of one byte more than a limit."""
    return OPEN + raw(0, 0, stream, bytes(32), length=limit + 1)


__all__ = ["CASES", "GRPC", "Answered", "Broken", "Case", "Refused", "literal", "over", "whole"]
