"""Header lists of gRPC over HTTP/2: what a call says of itself, and what its answer begins and ends with.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md has the rules.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import grpc
from hpack.hpack import encode_integer

from statestream_server.edges.grpc.served import Metadata
from statestream_server.edges.h2.floods import HEADER_LIST

_TIMEOUT: Final = re.compile(rb"(\d{1,8})([HMSmun])")
_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_KEY: Final = re.compile(r"[0-9a-z_.\-]+")
_RESERVED: Final = (b"te", b"grpc-accept-encoding")
"""What is no metadata, beside what `read` asks for by name."""
_UNPRINTED: Final = re.compile(rb"[^ -$&-~]")
_ENCODINGS: Final = b"identity, gzip"


@dataclass(slots=True)
class Head:
    """What a call says of itself.

    Attributes:
        method: `/service/method`.
        metadata: Names and values; bytes where the name ends in -bin.
        timeout: Seconds until it is to be over, None for ever.
        gzip: Whether its messages may be compressed.
        refusal: The headers that answer it where it is no call of gRPC, or None.
        plain: Whether another stream that begins with the same bytes is the same call.
        handler, direct: What serves it, and what may take it without a task; kept here to be looked for once.
    """

    method: str = ""
    metadata: Metadata = ()
    timeout: float | None = None
    gzip: bool = False
    refusal: bytes | None = None
    plain: bool = True
    handler: Any = None
    direct: Any = None


def read(headers: Iterable[tuple[bytes, bytes]]) -> Head:
    """What a call says of itself, in headers that are well-formed."""
    head, metadata, size = Head(), list[tuple[str, str | bytes]](), 0
    verb = kind = encoding = b""
    for name, value in headers:
        size += len(name) + len(value) + 32
        if name == b":path":
            head.method = value.decode("latin-1")
        elif name == b":method":
            verb = value
        elif name == b"content-type":
            kind = value
        elif name == b"grpc-timeout":
            found = _TIMEOUT.fullmatch(value)
            if found is None:
                head.refusal = ended(
                    grpc.StatusCode.INVALID_ARGUMENT, f"grpc-timeout is {value[:40]!r}; expected 1S, 100m, …"
                )
            else:
                head.timeout = int(found[1]) * _UNITS[found[2]]
        elif name == b"grpc-encoding":
            encoding = value
        elif name == b"content-length":
            head.plain = False  # The library counts against it.
        elif name[:1] != b":" and name not in _RESERVED:
            key = name.decode("latin-1")
            if not key.endswith("-bin"):
                metadata.append((key, value.decode("latin-1")))
                continue
            try:  # Several values of one name may stand in one header, with commas.
                metadata += [(key, _unpacked(part)) for part in value.split(b",")]
            except ValueError:
                head.refusal = ended(grpc.StatusCode.INVALID_ARGUMENT, "metadata whose name ends in -bin is no base64")
    head.metadata = tuple(metadata)
    if encoding == b"gzip":
        head.gzip = True
    elif encoding not in (b"", b"identity"):
        head.refusal = ended(
            grpc.StatusCode.UNIMPLEMENTED, f"grpc-encoding is {encoding[:40]!r}; expected {_ENCODINGS.decode()}"
        ) + packed([(b"grpc-accept-encoding", _ENCODINGS)])
    if size > HEADER_LIST:
        head.refusal = ended(
            grpc.StatusCode.RESOURCE_EXHAUSTED, f"the metadata has {size} bytes; expected at most {HEADER_LIST}"
        )
    if verb != b"POST":
        head.refusal = packed([(b":status", b"405"), (b"allow", b"POST"), (b"content-length", b"0")])
    elif kind != b"application/grpc" and kind[:17] not in (b"application/grpc+", b"application/grpc;"):
        head.refusal = packed([(b":status", b"415"), (b"content-length", b"0")])
    return head


BEGAN: Final = b"\x88\x0f\x10\x10application/grpc"
"""`:status: 200`, `content-type: application/grpc`: the headers that begin an answer, packed."""
ENDED: Final = b"\x00\x0bgrpc-status\x010"
"""`grpc-status: 0`: those that end it."""


def packed(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Headers as literals that neither look into a table nor change one (RFC 7541 §6.2.2)."""
    block = bytearray()
    for name, value in headers:
        block += b"\0" + encode_integer(len(name), 7) + name + encode_integer(len(value), 7) + value
    return bytes(block)


def began(metadata: Metadata) -> bytes:
    """The headers that begin an answer."""
    return BEGAN + packed(_written(metadata))


@lru_cache(256)
def ended(code: grpc.StatusCode, message: str, metadata: Metadata = (), *, began: bool = False) -> bytes:
    """The headers that end an answer, as trailers where it has `began`. In a flood they are the same for thousands."""
    block = [(b"grpc-status", b"%d" % code.value[0])]
    if message:
        block.append((b"grpc-message", _UNPRINTED.sub(_escaped, message.encode("utf-8", "replace"))))
    return (b"" if began else BEGAN) + packed([*block, *_written(metadata)])


def _escaped(found: re.Match[bytes]) -> bytes:
    return b"%%%02X" % found[0][0]


def _unpacked(part: bytes) -> bytes:
    bare = part.strip().rstrip(b"=")
    return base64.b64decode(bare + b"=" * (-len(bare) % 4), validate=True)


def _written(metadata: Metadata) -> Iterable[tuple[bytes, bytes]]:
    for name, value in metadata:
        if not _KEY.fullmatch(name) or (name.startswith("grpc-") and name != "grpc-status-details-bin"):
            raise ValueError(f"metadata cannot be called {name!r}")
        if name.endswith("-bin"):
            data = value if isinstance(value, bytes) else value.encode()
            yield name.encode(), base64.b64encode(data).rstrip(b"=")
        else:
            yield name.encode(), value.encode("latin-1") if isinstance(value, str) else value
