"""Identity: who calls, by the metadata or headers of the call. The one place that decides it; gRPC's chain asks it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from statestream_server.caller import ANYBODY, Caller, Trace

_HEADER: Final = "traceparent"
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def identify(headers: Iterable[tuple[str, str | bytes]]) -> Caller:
    """Who calls.

    A token would be looked at here; today everybody is the default tenant.

    Args:
        headers: Names, in lower case, and values.

    Raises:
        Unauthenticated: The caller may not call. Never today.
    """
    for name, value in headers:
        if name == _HEADER and isinstance(value, str):
            return Caller(trace=trace_of(value))
    return ANYBODY


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
