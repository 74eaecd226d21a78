"""Who calls, and as part of which trace: what an edge finds out at its door, for whatever runs for the call."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final, NamedTuple

from statestream_server.access.grants import Grant
from statestream_server.access.tokens import ADMIN
from statestream_server.stores.base import TENANT, Key


class Trace(NamedTuple):
    """The span of a caller's trace that a call is part of, as W3C Trace Context has it.

    Attributes:
        id: Of the trace, 32 hex digits.
        span: Of the caller's span, 16 hex digits.
        flags: What the caller says of the trace: bit 0 where it is recorded.
    """

    id: str
    span: str
    flags: int


class Caller(NamedTuple):
    """Who calls.

    Attributes:
        tenant: Whose sessions the call is about.
        trace: Where the call belongs in a trace; None where the caller has none.
        grant: What its token lets it do; None where the server asks for none, and anybody may do anything.
        waits: Whether it is yet to be found out who calls: by a certificate, of which grpcio tells the call itself
            alone. Nothing runs for it before.
    """

    tenant: str = TENANT
    trace: Trace | None = None
    grant: Grant | None = None
    waits: bool = False

    @property
    def counts(self) -> str | None:
        """The tenant whose sessions it may count; None for all, which takes the right to administer."""
        return None if self.grant is None or ADMIN in self.grant.token.rights else self.tenant

    def check(self, right: str) -> None:
        """Checks that it may do what needs a right, one of `access.tokens`.

        Raises:
            PermissionDenied: It may not.
        """
        if self.grant is not None:
            self.grant.check(right)


ANYBODY: Final = Caller()
"""A caller who says nothing of himself."""
current: ContextVar[Caller] = ContextVar("caller", default=ANYBODY)
"""The caller of the call that the running task serves; tasks that it begins have it, too."""


def key(model: str, session: str) -> Key:
    """The session that the running call means by an id."""
    return Key(current.get().tenant, model, session)
