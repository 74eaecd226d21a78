"""Certificates of callers: the names in one that TLS has checked, by which the file of tokens knows its tenant."""

from __future__ import annotations

import base64
import functools
import json
import math
import ssl
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple


class Names(NamedTuple):
    """What a certificate says of its owner.

    Attributes:
        uris: The URIs among its alternative names, as spiffe://acme/billing; what is no printable ASCII is none.
        common: The common name of its subject, the first of several; "" for none.
        ends: Unix time from which on it says nothing any more; infinite where none was shown.
    """

    uris: tuple[str, ...] = ()
    common: str = ""
    ends: float = math.inf

    def known_by(self) -> Iterator[str]:
        """What the file may know it by, the surest first."""
        yield from map(by_uri, self.uris)
        if self.common:
            yield by_name(self.common)


NOBODY: Final = Names()
"""Of a caller who showed no certificate."""


def by_uri(uri: str) -> str:
    """The key of a certificate that is known by a URI."""
    return f"uri:{uri}"


def by_name(name: str) -> str:
    """The key of a certificate that is known by the common name of its subject."""
    return f"name:{name}"


def of_peer(connected: Any) -> Names:
    """The names of who is at the other end of a TLS connection, as `ssl` has it; nobody without a checked one."""
    found: Mapping[str, Any] = (connected.getpeercert() if connected is not None else None) or {}
    uris = tuple(value for kind, value in found.get("subjectAltName", ()) if kind == "URI" and _is_uri(value))
    commons = [value for part in found.get("subject", ()) for key, value in part if key == "commonName"]
    ends = ssl.cert_time_to_seconds(found["notAfter"]) if "notAfter" in found else math.inf
    return Names(uris, commons[0] if commons else "", ends)


def of_context(properties: Mapping[str, Iterable[bytes]]) -> Names:
    """The same as grpcio's `auth_context` has it."""
    if b"ssl" not in properties.get("transport_security_type", ()):
        return NOBODY
    shown = [_read(pem) for pem in properties.get("x509_pem_cert", ())]
    commons = [value.decode(errors="replace") for value in properties.get("x509_common_name", ())]
    uris, ends = tuple(uri for uris, _ in shown for uri in uris), min((ends for _, ends in shown), default=math.inf)
    return Names(uris, commons[0] if commons else "", ends)


@functools.lru_cache(1 << 10)
def _read(pem: bytes) -> tuple[tuple[str, ...], float]:
    """The URIs among the alternative names of a certificate that TLS has checked, and when it ends.

    grpcio has lists of names of its own, which do not do: one mixes kinds of names, and each name ends at a NUL in it.
    It has no times. One that cannot be read has no URIs, and has ended.
    """
    try:
        whole = next(_parts(ssl.PEM_cert_to_DER_cert(pem.decode())))[1]
        fields = list(_parts(next(_parts(whole))[1]))
    except (ValueError, IndexError, StopIteration):
        return (), -math.inf
    return _uris(fields), _end(fields)


def _uris(fields: list[tuple[int, bytes]]) -> tuple[str, ...]:
    names = b""
    try:
        for kind, value in fields:
            if kind != _EXTENSIONS:
                continue
            for _, extension in _parts(next(_parts(value))[1]):
                said = list(_parts(extension))
                if said[0][1] == _ALTERNATIVES:
                    names = next(_parts(said[-1][1]))[1]
        found = [value.decode("latin-1") for kind, value in _parts(names) if kind == _URI]
    except (ValueError, IndexError, StopIteration):
        return ()
    return tuple(filter(_is_uri, found))


def _end(fields: list[tuple[int, bytes]]) -> float:
    try:
        _, (kind, value) = _parts(fields[_VALIDITY + (fields[0][0] == _VERSION)][1])
        text = value.decode()
        if kind == _SHORT_TIME:  # Of two digits of a year those from 50 on are of the century before.
            text = ("19" if text >= "50" else "20") + text
        return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except (ValueError, IndexError):
        return -math.inf


_EXTENSIONS: Final = 0xA3
_ALTERNATIVES: Final = b"\x55\x1d\x11"
_URI: Final = 0x86
"""RFC 5280: where a certificate has its extensions, the one of alternative names, and the kind of these."""
_VERSION: Final = 0xA0
_VALIDITY: Final = 3
_SHORT_TIME: Final = 0x17
"""And its version, which the oldest do not say; how many fields are before its times but that; UTCTime."""


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The tags and contents of values in DER that follow each other."""
    at = 0
    while at < len(data):
        kind, length, at = data[at], data[at + 1], at + 2
        if length >= 0x80:
            at, length = at + length - 0x80, int.from_bytes(data[at : at + length - 0x80], "big")
        yield kind, data[at : at + length]
        at += length


def _is_uri(text: str) -> bool:
    return text.isascii() and text.isprintable()


RELAYED: Final = "statestream-caller"
"""The header by which the process that has the port tells a worker whose certificate it saw; see `relayed`."""


def told(names: Names) -> bytes:
    """Names as the value of a header."""
    return base64.b64encode(json.dumps([names.ends, names.common, *names.uris]).encode())


def relayed(value: str) -> Names:
    """What `told` wrote; believe it of the process that has the port alone: whoever writes it says who he is."""
    try:
        ends, common, *uris = json.loads(base64.b64decode(value, validate=True))
        return Names(tuple(map(str, uris)), str(common), float(ends))
    except (ValueError, TypeError):
        return NOBODY
