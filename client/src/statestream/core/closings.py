"""Sessions that are let go: what is submitted behind that is refused, because nothing of it could be answered."""

from __future__ import annotations

import numpy as np

from statestream.core.controls import Control, Kind, controls_for
from statestream.core.table import State, Table
from statestream.core.tickets import ControlTicket, OpenTicket, PoolTicket, StepTicket
from statestream.errors import Closed
from statestream.wire import Ints

DETACHED, DELETED = 1, 2
"""What the table's column `closing` says of a session whose close, or delete, was submitted."""


class Closings:
    """Marks sessions from the moment their close is submitted until their handle is taken again.

    A close waits until what came before it is answered, and its handle may then stand for another session. So whoever
    comes later is told at once. What was submitted before, and waits for room or behind a reset, is not looked at here.
    """

    def __init__(self, table: Table) -> None:
        self._table = table

    def refuses(self, ticket: StepTicket | PoolTicket) -> bool:
        """Whether a step comes too late; it fails then."""
        closing = self._table.closing
        if not (closing.item(ticket.handle) if isinstance(ticket, StepTicket) else closing[ticket.handles].any()):
            return False
        ticket.finish(error=_closed("stepped"))
        return True

    def refused_reset(self, handles: Ints) -> OpenTicket | None:
        """The answer to a reset that comes too late."""
        if not self._table.closing[handles].any():
            return None
        ticket = OpenTicket(handles)
        for row in range(len(handles)):
            ticket.refuse(row, _closed("reset"))
        ticket.finish()
        return ticket

    def controls(self, kind: Kind, handles: Ints) -> tuple[ControlTicket, list[Control]]:
        """What is wanted of sessions, as `controls_for`: of those that may still be asked for it.

        A session that is being closed may be closed once more, and one that is being deleted may be closed or deleted
        once more: that is done when the first is.
        """
        table = self._table
        closing, lets_go = table.closing[handles], kind in (Kind.DETACH, Kind.DELETE)
        late = np.zeros(len(handles), np.bool_) if kind is Kind.DETACH else closing == DETACHED
        if not lets_go:
            late |= closing == DELETED
        joining = ~late & (closing != 0) & (table.state[handles] != State.FREE)
        new = handles[closing == 0]
        if lets_go:
            table.closing[new] = DELETED if kind is Kind.DELETE else DETACHED
        ticket, controls = controls_for((kind, new), (Kind.JOIN, handles[joining]))
        for handle in handles[late].tolist():
            ticket.errors[handle] = _closed(f"asked for a {kind.value}")
        return ticket, controls


def _closed(what: str) -> Closed:
    return Closed(f"the session was closed before it was {what}; open it again with client.session or client.sessions")
