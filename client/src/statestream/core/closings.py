"""Sessions that are let go: what is submitted behind that is refused, because nothing of it could be answered."""

from __future__ import annotations

import numpy as np

from statestream.contract.errors import Closed, SessionMoved
from statestream.contract.tensors import Ints
from statestream.core.controls import Controls, Kind, controls_for, deleted_by_another
from statestream.core.table import DELETED, DETACHED, ENDED, State, Table
from statestream.core.tickets import ControlTicket, PoolTicket, StepTicket


class Closings:
    """Marks sessions from the moment their close is submitted until their handle is taken again.

    A close waits until what came before it is answered, and its handle may then stand for another session. So whoever
    comes later is told at once.
    """

    def __init__(self, table: Table, controls: Controls) -> None:
        self._table = table
        self._controls = controls

    def refuse(self, ticket: StepTicket | PoolTicket) -> None:
        """A step comes too late."""
        handles = np.array([ticket.handle]) if isinstance(ticket, StepTicket) else ticket.handles
        ticket.finish(error=self._late(handles.item(self._table.closing[handles].astype(np.bool_).argmax()), "stepped"))

    def refuses_reset(self, ticket: StepTicket | PoolTicket) -> bool:
        """Whether a reset is of a session that failed and was opened again since; it fails then."""
        table = self._table
        handles = [ticket.handle] if isinstance(ticket, StepTicket) else ticket.handles.tolist()
        for handle in handles:
            if not table.is_current(handle):
                ticket.finish(error=_reopened(table.ids[handle]))
                return True
        return False

    def ask(self, kind: Kind, handles: Ints) -> ControlTicket:
        """Asks for something of sessions: of those that may still be asked for it.

        The last caller who closes a session lets it go: it is detached, or deleted where it ends with its callers. A
        delete ends it for all. A session that is being closed may be closed once more, and one that is being deleted
        may be closed or deleted once more: that is done when the first is.
        """
        table = self._table
        closing, lets_go = table.closing[handles], kind in (Kind.DETACH, Kind.DELETE)
        late = np.zeros(len(handles), np.bool_) if kind is Kind.DETACH else closing == DETACHED
        if not lets_go:
            late |= closing >= DELETED
        new, ending = handles[closing == 0], handles[:0]
        if lets_go:
            table.holders[handles] = np.maximum(table.holders[handles] - 1, 0)
            if kind is Kind.DETACH:
                new = new[table.holders[new] == 0]
                ephemeral = np.array([group.ephemeral for group in table.groups], np.bool_)[table.group[new]]
                new, ending = new[~ephemeral], new[ephemeral]
            table.closing[new] = DELETED if kind is Kind.DELETE else DETACHED
            table.closing[ending] = DETACHED
            table.release(handles[(closing == ENDED) & (table.holders[handles] == 0)])
        under_way = ~late & ((closing == DETACHED) | (closing == DELETED)) & (table.state[handles] != State.FREE)
        ticket = ControlTicket()
        for handle in handles[late].tolist():
            ticket.errors[handle] = self._late(handle, f"asked for a {kind.value}")
        controls = controls_for(ticket, table.next, (kind, new), (Kind.END, ending))
        self._controls.submit(ticket, controls, handles[under_way])
        return ticket

    def _late(self, handle: int, what: str) -> Closed:
        table = self._table
        if table.closing.item(handle) != DETACHED and table.holders.item(handle):
            return deleted_by_another(table.ids[handle])
        return Closed(
            f"the session was closed before it was {what}; open it again with client.session or client.sessions"
        )


def _reopened(session_id: str) -> SessionMoved:
    return SessionMoved(
        f"session {session_id!r} failed and was opened again by this client since; go on with what that gave"
    )
