"""Identity: who calls, by the metadata or headers of the call. The one place that decides it; gRPC's chain asks it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from statestream_server.access.certificates import NOBODY, Names
from statestream_server.access.grants import HEADER as TOKEN
from statestream_server.access.grants import Access
from statestream_server.caller import ANYBODY, Caller, Trace

_HEADER: Final = "traceparent"
_doors = list[Access | None]()
"""The tokens that the servers of this process ask for, the newest last. There is one but in tests."""
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def identify(headers: Iterable[tuple[str, str | bytes]], names: Names | None = NOBODY) -> Caller:
    """Who calls: the tenant and the rights of its token or certificate, or anybody where the server asks for none.

    Args:
        headers: Names, in lower case, and values.
        names: Those of the caller's certificate; None where the edge knows them later, see `certified`.

    Raises:
        Unauthenticated: The caller may not call.
    """
    headers = tuple(headers)
    trace = next((trace_of(value) for name, value in headers if name == _HEADER and isinstance(value, str)), None)
    access = _doors[-1] if _doors else None
    if access is None:
        return Caller(trace=trace) if trace is not None else ANYBODY
    if names is None and access.knows_certificates and not any(name == TOKEN for name, _ in headers):
        return Caller(trace=trace, waits=True)
    grant = access.grant(headers, names or NOBODY)
    return Caller(grant.token.tenant, trace, grant)


def certified(who: Caller, names: Names) -> Caller:
    """A caller who waited for the names of his certificate.

    Raises:
        Unauthenticated: The caller may not call.
    """
    access = _doors[-1] if _doors else None
    if access is None:
        return who._replace(waits=False)
    grant = access.grant((), names)
    return Caller(grant.token.tenant, who.trace, grant)


@contextmanager
def asking(access: Access | None) -> Iterator[None]:
    """Has every edge of this process ask for tokens meanwhile; None where anybody may call."""
    _doors.append(access)
    try:
        yield
    finally:
        _doors.remove(access)


def asks() -> bool:
    """Whether callers need a token."""
    return bool(_doors) and _doors[-1] is not None


def trace_of(header: str) -> Trace | None:
    """What a `traceparent` header says; None where it cannot be read, which concerns nobody but the tracing.

    See https://www.w3.org/TR/trace-context. Of versions to come the part that they share with this one is read.
    """
    found = _TRACEPARENT.fullmatch(header.strip())
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not (trace.strip("0") and span.strip("0")):
        return None
    return Trace(trace, span, int(flags, 16))
