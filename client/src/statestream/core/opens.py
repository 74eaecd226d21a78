"""Opening sessions: for the first time, anew, and again after a stream was lost; columnar, thousands in a frame."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat

import numpy as np

from statestream.contract import errors
from statestream.contract.errors import StatestreamError, from_status
from statestream.contract.tensors import (
    Array,
    Ints,
    handles_column,
    positions_column,
    read_handles,
    read_positions,
    to_tensor,
)
from statestream.core.departures import Departures
from statestream.core.log import Log
from statestream.core.opening import Opening, frames, indices, joined
from statestream.core.redelivery import Redelivery
from statestream.core.refusals import Refusals
from statestream.core.reopened import Reopened
from statestream.core.table import Group, State, Table
from statestream.core.tickets import OpenTicket, again
from statestream.v1.inference_pb2 import (
    OPEN_MODE_CREATE,
    OPEN_MODE_EITHER,
    OpenedFrame,
    OpenFrame,
    OpenMode,
)

MAX_REOPENS = 4
"""How often a live session is opened again without an answered chunk in between."""


class Opens:
    """Opens under way, and what their answers do to the table."""

    def __init__(
        self, table: Table, log: Log, departures: Departures, writer: bytes, incarnation: int, retry_seconds: float
    ) -> None:
        self.writer = writer
        self.clock = incarnation
        self.retry_seconds = retry_seconds
        self.waiting: list[Opening] = []
        self.in_flight: dict[int, Opening] = {}
        self.redelivery = Redelivery(table)
        self._table = table
        self._log = log
        self._departures = departures
        self.reopened = Reopened(table, log)
        self.refusals = Refusals(table, log, self.reopened, self.ask, retry_seconds)
        self.on_open: Callable[[Ints], None] = lambda *_: None
        """Hears of sessions that are open for a caller."""

    def open(
        self,
        handles: Ints,
        mode: OpenMode,
        ticket: OpenTicket,
        initial: dict[str, Array],
        *,
        rows: Ints | None = None,
        replies: bool = False,
        upgrade: bool = False,
    ) -> None:
        """Asks for sessions for the first time; they are these rows of the ticket, or all of them in this order."""
        rows = np.arange(len(handles)) if rows is None else rows
        self._table.incarnation[handles] = self.clock
        whole = Opening(handles, mode, ticket, rows, initial, replies=replies, upgrade=upgrade)
        if initial:
            for row, handle in enumerate(handles.tolist()):
                self._table.initial[handle] = {name: array[row] for name, array in initial.items()}
        self.waiting.extend(frames(whole))

    def ask(self, opening: Opening) -> None:
        """Asks for it once its time has come."""
        self.waiting.append(opening)

    def revive(self, handles: Ints) -> None:
        """Asks for those that failed as they are on the server now; what is submitted meanwhile goes on from there.

        It waits for the late answers to what was sent before, which must not be taken for those to what is sent then.
        One that is found nowhere starts from its own values again: a reset keeps those that are set once.
        """
        table = self._table
        handles = handles[table.state[handles] == State.FAILED]
        if not handles.size:
            return
        ticket = OpenTicket(handles)
        ticket.dropped = True  # Its sessions are open whatever becomes of it.
        self._log.forget(handles)
        for handle in handles.tolist():
            for known in (table.failures, table.untaken, table.unheard):
                known.pop(handle, None)
            table.durable[handle] = table.durable_then.pop(handle)
        table.state[handles] = State.OPENING
        table.incarnation[handles] = table.incarnation[handles].max(initial=0) + 1
        rows, own = np.arange(len(handles)), np.isin(handles, list(table.initial))
        for row in rows[own].tolist():
            initial = {name: array[np.newaxis] for name, array in table.initial[int(handles[row])].items()}
            which = np.array([row])
            self.waiting.append(Opening(handles[which], OPEN_MODE_EITHER, ticket, which, initial, revival=True))
        if not own.all():
            left = Opening(handles[~own], OPEN_MODE_EITHER, ticket, rows[~own], revival=True)
            self.waiting.extend(frames(left))

    def withdraw(self, handles: Ints) -> Ints:
        """Asks no more for sessions whose callers have gone; returns those of which nothing is on its way.

        One that may have been opened on a stream that was lost is asked for again, so that it can be let go.
        """
        kept, gone = list[Opening](), [handles[:0]]
        for opening in self.waiting:
            unwanted = np.isin(opening.handles, handles)
            if opening.ticket is None or opening.uncertain or not unwanted.any():
                kept.append(opening)
                continue
            gone.append(opening.handles[unwanted])
            if not unwanted.all():
                kept.append(opening.part(np.flatnonzero(~unwanted)))
        self.waiting = kept
        return np.concatenate(gone)

    def fail(self, handle: int, error: StatestreamError) -> None:
        """Makes a session unusable."""
        self._log.fail(handle, error)

    def reopen(self, handle: int, cause: StatestreamError, now: float) -> None:
        """Opens one session of a live stream again; after several times in vain it fails with the cause."""
        table = self._table
        if table.state[handle] == State.LOST:
            return
        if table.attempts[handle] >= MAX_REOPENS:
            self._log.fail(handle, cause)
            return
        self._log.unbind(handle)
        table.state[handle] = State.LOST
        delay = cause.retry_after if cause.retry_after is not None else 0.05 * (2 ** int(table.attempts[handle]) - 1)
        table.attempts[handle] += 1
        table.incarnation[handle] += 1
        self.waiting.extend(self.reopened.openings(np.array([handle]), now + delay))

    def connected(self) -> None:
        """Asks for every session that is open, in columns."""
        table = self._table
        handles = table.live()
        table.state[handles] = State.LOST
        table.incarnation[handles] += 1
        self.waiting.extend(self.reopened.openings(handles, 0.0))

    def left(self, handle: int, error: StatestreamError, now: float) -> None:
        """A session is not on this stream any more, as a notice says, or a call about it; it may be opened again."""
        elsewhere = isinstance(error, errors.NotOwner | errors.Draining)
        opening = self.redelivery.left(handle, error, again=elsewhere)
        if isinstance(opening, Opening):
            self._table.incarnation[handle] += 1
            opening.not_before = now + (error.retry_after or 0.05)
            self.waiting.append(opening)
        if opening is not False or handle >= self._table.size:
            return
        if self._table.state[handle] in (State.OPEN, State.HELD):
            if elsewhere:
                self.reopen(handle, error, now)
            else:
                self._log.fail(handle, error)
        self._log.unanswered(handle)

    def lost(self, fault: StatestreamError | None = None) -> None:
        """The stream is gone: first opens wait to be sent again; the others start anew with the next stream."""
        waiting = []
        for opening in self.in_flight.values():
            if opening.ticket is not None:
                left = np.isin(opening.handles, np.fromiter(opening.left, np.int64))
                part = opening.part(np.flatnonzero(left & (self._table.state[opening.handles] == State.OPENING)))
                if not len(part.handles):
                    continue
                part.uncertain = True
                # The lost one may still arrive, after this one: it must count as the older claim.
                self._table.incarnation[part.handles] += 1
                waiting.append(part)
        waiting.extend(self.redelivery.lost(fault))
        waiting.extend(opening for opening in self.waiting if opening.ticket is not None)
        self.waiting = waiting
        self.in_flight.clear()
        self.reopened.clear()

    def ready(self, now: float) -> list[Opening]:
        """Takes those that may leave, in as few frames as possible."""
        due, rest = list[Opening](), list[Opening]()
        for opening in self.waiting:
            late = opening.revival and self._table.in_flight[opening.handles].any()
            if opening.not_before <= now:
                opening.not_before = 0.0
            (rest if late or opening.not_before else due).append(opening)
        self.waiting = rest
        return joined(due, self._table)

    def sent(self, frame: int, opening: Opening) -> OpenFrame:
        """Notes the number under which it leaves; returns the frame."""
        table, handles = self._table, opening.handles
        opening.left = set(handles.tolist())
        self.in_flight[frame] = opening
        group = table.groups[int(table.group[handles[0]])]
        mode = opening.mode
        if opening.done and mode == OPEN_MODE_CREATE:
            mode = OPEN_MODE_EITHER
        message = OpenFrame(
            model=group.model,
            version=group.version,
            alias=group.alias,
            handles=handles_column(handles),
            ids=[table.ids[handle] for handle in handles.tolist()],
            mode=mode,
            writer=self.writer,
            incarnation=int(table.incarnation[handles[0]]),
            ephemeral=group.ephemeral,
            initial_states=[to_tensor(name, array) for name, array in opening.initial.items()],
            return_replies=opening.replies,
            # Only the caller's own opening moves a session. It is durable in the new version when the answer comes, so
            # that the library opens it there ever after; one whose answer was lost is sent again as it was.
            upgrade=opening.upgrade,
        )
        if table.epoch[handles].any():
            message.seen_epochs = positions_column(table.epoch[handles])
        if opening.ticket is None:
            message.replay_positions = positions_column(table.floor[handles])
            message.acked_positions = positions_column(table.acknowledgeable(handles))
        return message

    def opened(self, frame: int, message: OpenedFrame, now: float) -> bool:
        """Binds what was opened; refused ones are tried again, or fail. Whether a caller waited for it."""
        opening = self.in_flight.get(frame)
        if opening is None:
            return False
        handles = read_handles(message.handles)
        count = len(handles)
        epochs = read_positions(message.epochs, count)
        positions = read_positions(message.positions, count)
        durable = read_positions(message.durable_positions, count)
        created = np.frombuffer(message.created, np.uint8) if message.created else np.zeros(count, np.uint8)
        kept = read_handles(message.kept).astype(np.int64) if message.kept else np.zeros(count, np.int64)
        # One that waited too long, or whose caller learned of another end meanwhile, stays as it is.
        awaited = self._table.state[handles] == (State.LOST if opening.ticket is None else State.OPENING)
        if not awaited.all():
            opening.left.difference_update(handles.tolist())
            handles, epochs, positions = handles[awaited], epochs[awaited], positions[awaited]
            durable, created, kept = durable[awaited], created[awaited], kept[awaited]
            count = len(handles)
        if count:
            opening.left.difference_update(handles.tolist())
            table = self._table
            table.epoch[handles] = epochs
            table.durable[handles] = durable
            group = table.groups[int(table.group[handles[0]])]
            table.group[handles] = table.group_number(Group(group.model, message.version, group.ephemeral))
            self._log.windows.told(group.model, message.version, message.window_bytes)
            self._departures.max_kept = message.kept_window_bytes or self._departures.max_kept
            if opening.ticket is None:
                self.reopened.bound(handles, positions)
            else:
                rows = self._bound(opening, opening.ticket, handles, positions, epochs, created != 0, message.version)
                self._bound_history(message, handles)
                if opening.replies:
                    rows = self.redelivery.expect(frame, opening, handles, rows, kept)
                opening.ticket.count(rows)
                self.on_open(handles[self._table.state[handles] == State.OPEN])
        self.refusals.rows(opening, {error.handle: from_status(error.status) for error in message.errors}, now)
        if not opening.left:
            self.in_flight.pop(frame, None)
        self._replay()
        # Those whose replies are still to come are no answer yet.
        return opening.ticket is not None and frame not in self.redelivery.frames

    def refuse_frame(self, frame: int, error: StatestreamError, now: float) -> bool:
        """Refuses every session of a frame; False where the frame opened none."""
        opening = self.in_flight.pop(frame, None)
        if opening is None:
            return False
        self.refusals.frame(opening, error, now)
        self._replay()
        return True

    def give_up(self, error: StatestreamError) -> None:
        """Fails every first open; the others are dropped until the next stream."""
        for opening in [*self.in_flight.values(), *self.waiting]:
            if opening.ticket is not None:
                left = opening.left or set(opening.handles.tolist())
                for handle in left:
                    self.refusals.tell(opening, handle, again(error))
        self.redelivery.give_up(error)
        self.in_flight.clear()
        self.waiting.clear()
        self.reopened.clear()

    def due(self) -> float | None:
        """When the next one may leave, of those that must wait."""
        return min((opening.not_before for opening in self.waiting if opening.not_before), default=None)

    def _bound(
        self,
        opening: Opening,
        ticket: OpenTicket,
        handles: Ints,
        positions: Ints,
        epochs: Ints,
        created: Array,
        version: int,
    ) -> Ints:
        """Enters what is known of sessions that were opened for a caller; returns their rows in the ticket."""
        table = self._table
        rows = opening.rows[indices(opening.handles, handles)]
        if opening.revival:
            self._log.rebase(handles, positions)
        else:
            table.next[handles] = positions
        for name in ("sent", "answered", "floor"):
            getattr(table, name)[handles] = positions
        for name in ("acked", "in_flight", "unacked", "stale", "attempts"):
            getattr(table, name)[handles] = 0
        table.state[handles] = State.OPEN
        ticket.opened(rows, created | (opening.done & (positions == 0)), version)
        if opening.done:
            for at in np.flatnonzero(~created & (positions > 0)).tolist():
                # Somebody else was quicker.
                handle = int(handles[at])
                taken = errors.SessionExists(
                    f"session {table.ids[handle]!r} exists already; choose another id, or open it with mode 'either'"
                )
                ticket.refuse(int(rows[at]), taken)
                table.holders[handle] = 0
        return rows

    def _bound_history(self, message: OpenedFrame, handles: Ints) -> None:
        """Enters where the histories of sessions began, and their callers' cursors."""
        table = self._table
        table.origin[handles] = 0
        if not (message.origins or message.cursors or table.cursors):
            return
        named = read_handles(message.handles).tolist()
        origins = read_positions(message.origins, len(named)).tolist() if message.origins else repeat(0)
        wanted = set(handles.tolist())
        for handle, origin, cursor in zip(named, origins, message.cursors or repeat(b""), strict=False):
            if handle in wanted:
                table.origin[handle] = origin
                table.cursors.pop(handle, None)
                if cursor:
                    table.cursors[handle] = cursor

    def _replay(self) -> None:
        # One pass over the buffer for all sessions of a reconnect, not one for every frame of it.
        if any(opening.ticket is None for opening in self.in_flight.values()):
            return
        if not any(opening.ticket is None and not opening.not_before for opening in self.waiting):
            self.reopened.go_on()
