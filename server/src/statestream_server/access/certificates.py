"""Certificates of callers: the names in one that TLS has checked, by which the file of tokens knows its tenant."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple


class Names(NamedTuple):
    """What a certificate says of its owner.

    Attributes:
        uris: The URIs among its alternative names, as spiffe://acme/billing.
        common: The common name of its subject; "" for none.
    """

    uris: tuple[str, ...] = ()
    common: str = ""

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
    uris = tuple(value for kind, value in found.get("subjectAltName", ()) if kind == "URI")
    commons = [value for part in found.get("subject", ()) for key, value in part if key == "commonName"]
    return Names(uris, commons[-1] if commons else "")


def of_context(properties: Mapping[str, Iterable[bytes]]) -> Names:
    """The same as grpcio's `auth_context` has it."""
    if b"ssl" not in properties.get("transport_security_type", ()):
        return NOBODY
    uris = tuple(_text(value) for value in properties.get("x509_uri", properties.get("peer_spiffe_id", ())))
    if not uris:
        others = properties.get("x509_subject_alternative_name", ())
        uris = tuple(text for text in map(_text, others) if "://" in text)
    commons = [_text(value) for value in properties.get("x509_common_name", ())]
    return Names(uris, commons[-1] if commons else "")


RELAYED: Final = "statestream-caller"
"""The header by which the process that has the port tells a worker whose certificate it saw; see `relayed`."""


def told(names: Names) -> bytes:
    """Names as the value of a header."""
    return base64.b64encode(json.dumps([names.common, *names.uris]).encode())


def relayed(value: str) -> Names:
    """What `told` wrote; believe it of the process that has the port alone: whoever writes it says who he is."""
    try:
        common, *uris = json.loads(base64.b64decode(value, validate=True))
    except (ValueError, TypeError):
        return NOBODY
    return Names(tuple(map(str, uris)), str(common))


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
