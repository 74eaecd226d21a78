"""Who has a session open: several callers of one client share it, and what asks for it meanwhile takes its turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from statestream.contract.errors import AlreadyOpen, SessionExists, SessionMoved, StatestreamError
from statestream.contract.tensors import Array, Ints
from statestream.core.opening import Opening
from statestream.core.opens import Opens
from statestream.core.table import Group, State, Table
from statestream.core.tickets import OpenTicket, again
from statestream.v1.inference_pb2 import OPEN_MODE_CREATE, OPEN_MODE_REPLACE, OpenMode


@dataclass(eq=False, slots=True)
class Wish:
    """One session that a caller asks for while it is being opened, or let go, for another caller of this client.

    Attributes:
        group: Its model and version.
        id: Its id.
        mode: How it is to be opened.
        ticket: Who waits.
        row: Its row in the ticket.
        initial: Start values, [1, ...] by state.
        replies: The caller asked for the replies that nobody acknowledged.
        upgrade: The caller wants it moved to the group's version.
    """

    group: Group
    id: str
    mode: OpenMode
    ticket: OpenTicket
    row: int
    initial: dict[str, Array]
    replies: bool
    upgrade: bool

    def is_like(self, opening: Opening, group: Group) -> bool:
        """Whether what refused an opening would refuse this as well."""
        plain = not (self.initial or opening.initial)
        return plain and (self.mode, self.group, self.upgrade) == (opening.mode, group, opening.upgrade)


class Sharing:
    """Opens by id, of which a client has each once.

    A second claim would fence the first, although both are this client's. So whoever asks for a session that is open
    here joins it: one handle, whose steps have one order, counted in the table's column `holders`. The last who leaves
    lets it go; see `Closings`. Who asks while it is being opened or let go waits for that.
    """

    def __init__(self, table: Table, opens: Opens) -> None:
        self.waiting: dict[int, list[Wish]] = {}
        """Who waits for a session that is being opened, or let go, by handle."""
        self.forsaken: list[int] = []
        """Open sessions that nobody has, to be let go: who asked is gone, or who asks now wants another one."""
        self._superseded: set[int] = set()
        """Sessions that were made anew on the server while they were being opened here."""
        self._table = table
        self._opens = opens

    def open(
        self,
        group: Group,
        ids: Sequence[str],
        mode: OpenMode,
        initial: dict[str, Array],
        *,
        replies: bool,
        upgrade: bool,
        anew: bool,
    ) -> OpenTicket:
        """Asks for sessions; with `anew` they were made anew on the server, and handles that there were are over.

        Raises:
            AlreadyOpen: One is open here and was asked for in a way that would change it; none was opened.
        """
        names = self._table.names.get(group.model, {})
        if not names or names.keys().isdisjoint(ids):
            ticket = OpenTicket(self._claim(group, ids))
            self._opens.open(ticket.handles, mode, ticket, initial, replies=replies, upgrade=upgrade)
            return ticket
        ticket = OpenTicket(np.full(len(ids), -1, np.int64))
        known = list[Wish]()
        for row, session_id in enumerate(ids):
            if session_id in names:
                own = {name: array[row : row + 1] for name, array in initial.items()}
                known.append(Wish(group, session_id, mode, ticket, row, own, replies, upgrade))
        for wish in known:
            handle = names[wish.id]
            if anew:
                self._supersede(handle)
            elif self._is_shared(handle) and (error := self._refusal(wish, handle)) is not None:
                raise error
        fresh = np.setdiff1d(np.arange(len(ids)), [wish.row for wish in known])
        if fresh.size:
            handles = ticket.handles[fresh] = self._claim(group, [ids[row] for row in fresh.tolist()])
            chosen = {name: array[fresh] for name, array in initial.items()}
            self._opens.open(handles, mode, ticket, chosen, rows=fresh, replies=replies, upgrade=upgrade)
        for wish in known:
            self._take(wish)
        return ticket

    def opened(self, handles: Ints) -> None:
        """Sessions are open, or open again after they failed: who waits for them joins them."""
        if self.waiting:
            self.settled(handles)
        for handle in self._superseded.intersection(handles.tolist()) if self._superseded else ():
            self._superseded.discard(handle)
            if not self._table.is_current(handle):
                self._opens.fail(handle, _restored(self._table.ids[handle]))
        self.forsaken.extend(handles[self._table.holders[handles] == 0].tolist())

    def settled(self, handles: Ints) -> None:
        """These sessions failed, were let go or opened: who waits for one of them has their turn."""
        if not self.waiting:
            return
        for handle in self.waiting.keys() & set(handles.tolist()):
            for wish in self.waiting.pop(handle):
                self._take(wish)

    def refused(self, handle: int, opening: Opening, group: Group, error: StatestreamError | None) -> None:
        """A first open was refused: who waits for the session hears the same, or asks in their own way.

        So do they where it was dropped, without an error: another try may be granted.
        """
        wishes = self.waiting.pop(handle, ())
        for wish in wishes:
            if error is not None and wish.is_like(opening, group):
                _refuse(wish, again(error))
        for wish in wishes:
            if not wish.ticket.settled[wish.row]:
                self._take(wish)

    def drop(self, ticket: OpenTicket) -> Ints:
        """Whoever asked for sessions is gone; returns those that are open and have to be closed for it.

        Those that are being opened are let go once they are.
        """
        if ticket.dropped:
            return ticket.handles[:0]
        ticket.dropped = True
        table, refused = self._table, np.zeros(len(ticket.handles), np.bool_)
        refused[list(ticket.errors)] = True
        for handle, wishes in [*self.waiting.items()]:
            left = [wish for wish in wishes if wish.ticket is not ticket]
            if left:
                self.waiting[handle] = left
            else:
                del self.waiting[handle]
        pending = ticket.handles[~ticket.settled]
        pending = pending[pending >= 0]
        if pending.size:
            table.holders[pending] -= 1
            gone = self._opens.withdraw(pending[table.holders[pending] == 0])
            table.release(gone)
            self.settled(gone)
        return ticket.handles[ticket.settled & ~refused]

    def disown(self, ticket: OpenTicket) -> None:
        """Whoever had sessions is gone, without a word: they stay open, and are anybody's who asks for them."""
        if not ticket.dropped:
            ticket.dropped = True
            table, own = self._table, ticket.settled.copy()
            own[list(ticket.errors)] = False
            handles = ticket.handles[own]
            table.holders[handles] = np.maximum(table.holders[handles] - 1, 0)

    def give_up(self, error: StatestreamError) -> None:
        """Refuses all who wait."""
        waiting, self.waiting = self.waiting, {}
        for wishes in waiting.values():
            for wish in wishes:
                _refuse(wish, again(error))

    def _claim(self, group: Group, ids: Sequence[str]) -> Ints:
        handles = self._table.allocate(group, ids)
        self._table.holders[handles] = 1
        return handles

    def _take(self, wish: Wish) -> None:
        """Gives a caller its session, now or when that is settled."""
        table, group, row = self._table, wish.group, np.array([wish.row])
        handle = table.names.get(group.model, {}).get(wish.id)
        if handle is None or (table.state.item(handle) == State.FAILED and not table.closing.item(handle)):
            # One that failed stays so for whoever has it; it is opened again under another handle.
            handles = wish.ticket.handles[row] = self._claim(group, [wish.id])
            self._opens.open(
                handles, wish.mode, wish.ticket, wish.initial, rows=row, replies=wish.replies, upgrade=wish.upgrade
            )
        elif table.closing.item(handle) or table.state.item(handle) == State.OPENING or self._must_go(wish, handle):
            self.waiting.setdefault(handle, []).append(wish)
            if table.state.item(handle) != State.OPENING and not table.closing.item(handle):
                self.forsaken.append(handle)
        elif (error := self._refusal(wish, handle)) is not None:
            _refuse(wish, error)
        elif wish.mode == OPEN_MODE_CREATE:
            said = f"session {wish.id!r} exists already; choose another id, or open it with mode 'either'"
            _refuse(wish, SessionExists(said))
        else:
            table.holders[handle] += 1
            wish.ticket.handles[wish.row] = handle
            wish.ticket.opened(row, np.zeros(1, np.bool_), table.groups[table.group.item(handle)].version)
            wish.ticket.count(row)

    def _is_shared(self, handle: int) -> bool:
        """Whether a session is open, or about to be, and stays so."""
        table = self._table
        going = table.closing.item(handle) or not table.holders.item(handle)
        return table.state.item(handle) != State.FAILED and not going

    def _must_go(self, wish: Wish, handle: int) -> bool:
        """Whether a session that nobody has, and that is let go now, cannot be had as it is."""
        alone = not self._table.holders.item(handle)
        return alone and (wish.mode == OPEN_MODE_CREATE or self._refusal(wish, handle) is not None)

    def _refusal(self, wish: Wish, handle: int) -> AlreadyOpen | None:
        """Why a session that is open here cannot be had as it was asked for."""
        table = self._table
        version = table.groups[table.group.item(handle)].version
        if wish.mode == OPEN_MODE_REPLACE:
            asked = "to start anew (mode 'replace'); close it first, or reset it"
        elif wish.initial:
            asked = "with start values, which only a new session takes; close it first, or leave them out"
        elif wish.group.version != version and version and (wish.group.version or wish.upgrade):
            target = f"version {wish.group.version}" if wish.group.version else wish.group.alias or "the newest version"
            asked = f"in {target}; it is open in version {version}. Close it first"
        else:
            return None
        return AlreadyOpen(f"session {wish.id!r} is open in this client and was asked for {asked}")

    def _supersede(self, handle: int) -> None:
        table = self._table
        if self._is_shared(handle):
            # Who asked for one that is being opened is answered first; as it is opened, it is over.
            if table.state.item(handle) == State.OPENING:
                self._superseded.add(handle)
            else:
                self._opens.fail(handle, _restored(table.ids[handle]))
        table.forget_names(np.array([handle]))


def _restored(session_id: str) -> SessionMoved:
    return SessionMoved(f"session {session_id!r} was restored through this client; use that session")


def _refuse(wish: Wish, error: StatestreamError) -> None:
    wish.ticket.refuse(wish.row, error)
    wish.ticket.count(np.array([wish.row]))
