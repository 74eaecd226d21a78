"""Flush, close and waiting for answers: each names the position that it stands behind, where a session ended then."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from statestream.contract.errors import (
    Closed,
    Moved,
    Overloaded,
    PositionGap,
    SessionNotFound,
    StatestreamError,
    Unavailable,
    from_status,
)
from statestream.contract.tensors import Ints, Mask, handles_column, positions_column
from statestream.core.log import Log
from statestream.core.table import ENDED, State, Table
from statestream.core.tickets import ControlTicket, again
from statestream.v1.inference_pb2 import (
    CLOSE_ACTION_DELETE,
    CLOSE_ACTION_DETACH,
    DURABILITY_MODE_NONE,
    DURABILITY_MODE_SYNC,
    CloseFrame,
    DurabilityMode,
    FlushFrame,
    StreamRequest,
)
from statestream.v1.tensor_pb2 import RowError

FRAME_SESSIONS = 16_384
"""The most sessions in one frame."""

RETRY_SECONDS = 0.2
"""How long what the server cannot serve now is held where it names no time."""


class Kind(enum.Enum):
    """What is wanted."""

    FLUSH = "flush"
    DETACH = "detach"
    DELETE = "delete"
    END = "end"
    """A close of sessions that end with their callers: they are deleted."""
    SETTLE = "settle"
    """All chunks answered, the session bound, and what it was bound without there again: nothing is sent."""


@dataclass(eq=False, slots=True)
class Control:
    """One operation on some sessions.

    Attributes:
        kind: What is wanted.
        handles: [N] the sessions.
        ends: [N] where they ended when it was submitted: up to there it is about them.
        ticket: Who waits.
        asked: [M] those that its frame is about.
        not_before: When it may leave, where the server could not serve it.
        since: When that was for the first time.
    """

    kind: Kind
    handles: Ints
    ends: Ints
    ticket: ControlTicket
    asked: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    not_before: float = 0.0
    since: float = 0.0

    @property
    def lets_go(self) -> bool:
        """Whether the sessions are let go."""
        return self.kind in (Kind.DETACH, Kind.DELETE, Kind.END)

    def keep(self, mask: Mask) -> None:
        """It is about some of the sessions only."""
        self.handles, self.ends = self.handles[mask], self.ends[mask]


def controls_for(ticket: ControlTicket, ends: Ints, *wanted: tuple[Kind, Ints]) -> list[Control]:
    """What is wanted of some sessions, cut into as many operations as it takes frames.

    Args:
        ticket: Who waits for all of it.
        ends: Up to where it is about a session, by handle.
        wanted: What, and of which.
    """
    return [
        Control(kind, part, ends[part], ticket)
        for kind, handles in wanted
        for part in (handles[low : low + FRAME_SESSIONS] for low in range(0, len(handles), FRAME_SESSIONS))
    ]


class Controls:
    """Operations that wait, and those in flight.

    A flush leaves once what it is about was sent, and overtakes what comes behind; so steps may wait for the room that
    a flush behind them makes. A close leaves once all is answered, because its acknowledgement goes with it.
    """

    def __init__(self, table: Table, log: Log, retry_seconds: float) -> None:
        self.durability: DurabilityMode = DURABILITY_MODE_NONE
        self.on_gone: Callable[[Ints], None] = lambda *_: None
        """Hears of sessions that were let go, once that is noted."""
        self.failed: list[Ints] = []
        """Sessions that had failed when they were let go: the server may have them on the stream all the same."""
        self.retry_seconds = retry_seconds
        self.waiting: list[Control] = []
        self.in_flight: dict[int, list[Control]] = {}
        self.joined: dict[int, list[ControlTicket]] = {}
        """Who closes a session too that is being closed, by handle: done when that is."""
        self._table = table
        self._log = log

    def submit(self, ticket: ControlTicket, controls: Sequence[Control], joined: Ints) -> None:
        """Asks for something that takes effect after the chunks submitted before.

        Args:
            ticket: Who waits for it.
            controls: What is asked for.
            joined: Sessions that are being closed already: it is done when that is.
        """
        ticket.left = len(controls) + len(joined)
        if not ticket.left:
            ticket.finish()
        self.waiting.extend(controls)
        for handle in joined.tolist():
            self.joined.setdefault(handle, []).append(ticket)

    def save(self) -> ControlTicket:
        """Asks for all that is answered to be made durable: until then it takes room in the replay buffer."""
        table, ticket = self._table, ControlTicket()
        handles = np.flatnonzero((table.durable < table.answered) & (table.state == State.OPEN))
        self.submit(ticket, controls_for(ticket, table.answered, (Kind.FLUSH, handles)), handles[:0])
        return ticket

    def rebase(self, handles: Ints, moved: Ints) -> None:
        """Positions that are not sent yet have moved: so have the ends of what stands behind them."""
        by = np.zeros(self._table.size, np.int64)
        by[handles] = moved
        for control in self.waiting:
            control.ends = control.ends + by[control.handles]

    def lost(self) -> None:
        """The stream is gone: what was in flight waits again."""
        self.waiting[:0] = self.under_way()
        self.in_flight.clear()
        self.failed.clear()

    def ready(self, now: float) -> list[list[Control]]:
        """Takes those whose turn has come, as many as possible together; such as need no frame are done here."""
        # Flushes leave first: one of a session that another closes in the same turn was asked for before that.
        ready: dict[Kind, list[Control]] = {Kind.FLUSH: []}
        rest, done = list[Control](), list[Control]()
        for control in self.waiting:
            failed = self._table.state[control.handles] == State.FAILED
            if failed.any() and not control.lets_go:
                self._refuse_failed(control, control.handles[failed])
                control.keep(~failed)
                failed = failed[~failed]
            control.asked = control.handles[~failed]
            if control.not_before <= now:
                control.not_before = 0.0  # What else it waits for comes as an answer.
            if control.not_before or not self._turn(control, control.ends[~failed]):
                rest.append(control)
            elif control.kind is Kind.SETTLE or not control.asked.size:
                done.append(control)
            else:
                ready.setdefault(control.kind, []).append(control)
        self.waiting = rest
        self._finish(done, [control for alike in ready.values() for control in alike])
        return [batch for alike in ready.values() for batch in _batches(alike)]

    def offline(self) -> None:
        """Without a stream: lets go of sessions that have nothing to lose by it."""
        rest, done = list[Control](), list[Control]()
        table = self._table
        for control in self.waiting:
            handles = control.handles[table.state[control.handles] != State.FAILED]
            idle = bool((table.answered[handles] == table.next[handles]).all())
            safe = self.durability in (DURABILITY_MODE_NONE, DURABILITY_MODE_SYNC) or not self._behind(handles).any()
            (done if control.kind is Kind.DETACH and idle and safe else rest).append(control)
        self.waiting = rest
        self._finish(done)

    def encode(self, batch: list[Control], frame: int) -> StreamRequest:
        """The frame of operations of one kind, noted as in flight."""
        self.in_flight[frame] = batch
        asked = np.concatenate([control.asked for control in batch])
        if batch[0].kind is Kind.FLUSH:
            ends = np.minimum(np.concatenate([control.ends for control in batch]), self._table.next[asked])
            if len(batch) > 1:  # Two callers may flush the same session; a handle comes once in a frame.
                asked, places = np.unique(asked, return_inverse=True)
                ends, each = np.zeros(len(asked), np.int64), ends
                np.maximum.at(ends, places, each)
            flush = FlushFrame(handles=handles_column(asked), positions=positions_column(ends))
            return StreamRequest(frame=frame, flush=flush)
        asked = np.unique(asked)
        self._table.leaving.update(asked.tolist())
        close = CloseFrame(
            handles=handles_column(asked),
            action=CLOSE_ACTION_DETACH if batch[0].kind is Kind.DETACH else CLOSE_ACTION_DELETE,
            positions=positions_column(self._table.next[asked]),
            epochs=positions_column(self._table.epoch[asked]),
        )
        return StreamRequest(frame=frame, close=close)

    def unbind(self, frame: int) -> StreamRequest:
        """A frame that has the server let go of sessions that had failed; nobody waits for its answer."""
        handles, self.failed = np.unique(np.concatenate(self.failed)), []
        return StreamRequest(frame=frame, close=CloseFrame(handles=handles_column(handles), action=CLOSE_ACTION_DETACH))

    def answered(self, frame: int, refusals: Iterable[RowError], now: float) -> None:
        """The answer to a close, or to a flush. What was not open here any more is as closed as it can be."""
        found = {refusal.handle: from_status(refusal.status) for refusal in refusals}
        batch = self.in_flight.pop(frame, [])
        self._finish([one for one in batch if not (found and self._refused(one, found, now)) and not self._early(one)])

    def refuse_frame(self, frame: int, error: StatestreamError, now: float) -> bool:
        """Refuses an operation, or asks for it again; False where the frame carried none."""
        batch = self.in_flight.pop(frame, None)
        self._abort([control for control in batch or () if not self._again(control, error, now)], error)
        return batch is not None

    def due(self) -> float | None:
        """When the next one may leave, of those that must wait."""
        return min((control.not_before for control in self.waiting if control.not_before), default=None)

    def under_way(self) -> list[Control]:
        """Those that the server has been asked for."""
        return [control for batch in self.in_flight.values() for control in batch]

    def overdue(self, control: Control, error: StatestreamError) -> None:
        """Fails an operation that the server does not answer; it may happen all the same."""
        for frame, batch in [*self.in_flight.items()]:
            if control in batch:
                batch.remove(control)
                if not batch:
                    del self.in_flight[frame]
        self._abort([control], error)

    def give_up(self, error: StatestreamError) -> None:
        """Fails everything."""
        self.lost()
        waiting, self.waiting = self.waiting, []
        self._abort(waiting, error)

    def _turn(self, control: Control, ends: Ints) -> bool:
        """Whether it may leave, or is done, for the sessions that it asks about."""
        table, handles = self._table, control.asked
        if (table.state[handles] != State.OPEN).any() or table.stale[handles].any():
            return False
        if control.lets_go:
            return bool((table.answered[handles] == table.next[handles]).all()) and not table.in_flight[handles].any()
        # What was given up, or not submitted after all, is not waited for.
        ends = np.minimum(ends, table.next[handles])
        if (table.sent[handles] < ends).any():
            return False
        if control.kind is Kind.FLUSH:
            return True
        return bool((table.answered[handles] >= ends).all()) and not self._log.is_replaying(handles)

    def _refuse_failed(self, control: Control, handles: Ints) -> None:
        table = self._table
        for handle in handles.tolist():
            # Where what came behind it, a delete of our own, has happened, it is as good as done.
            if not (handle in table.leaving and isinstance(table.failures[handle], SessionNotFound)):
                control.ticket.errors[handle] = table.failure(handle)

    def _early(self, control: Control) -> bool:
        """Whether a flush is answered before what it is about: replies to what was sent again may come behind it.

        Whoever flushed then finds `position` where it will stand.
        """
        table, handles = self._table, control.handles
        early = table.answered[handles] < np.minimum(control.ends, table.next[handles])
        if control.kind is not Kind.FLUSH or not early.any():
            return False
        control.kind = Kind.SETTLE
        self.waiting.append(control)
        return True

    def _refused(self, control: Control, found: dict[int, StatestreamError], now: float) -> bool:
        """Notes what was refused of an operation; True where it is asked for again."""
        mine = {handle: found[handle] for handle in control.asked.tolist() if handle in found}
        if not any(self._again(control, error, now) for error in mine.values()):
            control.ticket.errors.update((handle, again(error)) for handle, error in mine.items())
            return False
        if control.kind is Kind.FLUSH:
            # The others are saved, or told: it is asked for again of those alone that do not stand there yet.
            gaps = [handle for handle, error in mine.items() if isinstance(error, PositionGap)]
            control.ticket.errors.update((one, again(error)) for one, error in mine.items() if one not in gaps)
            control.keep(np.isin(control.handles, gaps))
        return True

    def _again(self, control: Control, error: StatestreamError, now: float) -> bool:
        """Whether something is asked for again.

        That is what stands behind a chunk that was put off, or refused; and a close that the server cannot serve now,
        lest it is forgotten half done.
        """
        control.since = control.since or now
        if not isinstance(error, PositionGap | Unavailable | Overloaded if control.lets_go else PositionGap):
            return False
        if now - control.since >= self.retry_seconds:
            return False
        control.not_before = now + (RETRY_SECONDS if error.retry_after is None else error.retry_after)
        self.waiting.append(control)
        return True

    def _abort(self, controls: Sequence[Control], error: StatestreamError) -> None:
        for control in controls:
            for handle in control.handles.tolist():
                control.ticket.errors.setdefault(handle, again(error))
        self._finish(controls)

    def _behind(self, handles: Ints) -> Mask:
        """Which sessions have answered steps that are not known to be durable."""
        return self._table.durable[handles] < self._table.answered[handles]

    def _finish(self, controls: Sequence[Control], ready: Sequence[Control] = ()) -> None:
        """These are done. What is let go is forgotten at once: its handle may soon stand for another session."""
        leaving = [control for control in controls if control.lets_go]
        if leaving:
            for control in leaving:
                self._judge(control)
            gone = np.concatenate([self._going(control) for control in leaving])
            failed = gone[self._table.state[gone] == State.FAILED]
            if failed.size:
                self.failed.append(failed)
            self._forget(gone)
            for control in [*ready, *self.waiting, *self.under_way()]:
                control.keep(~np.isin(control.handles, gone))
            ended = np.concatenate([control.handles for control in leaving])
            for handle in self.joined.keys() & set(ended.tolist()) if self.joined else ():
                for ticket in self.joined.pop(handle):
                    ticket.part_done()
            self.on_gone(ended)
        for control in controls:
            control.ticket.part_done()

    def _judge(self, control: Control) -> None:
        """What whoever lets sessions go hears of those that had gone: nothing where they lose nothing by it."""
        table, found = self._table, control.ticket.errors
        for handle in control.handles[table.state[control.handles] == State.FAILED].tolist():
            if handle in table.unheard or handle in found or control.kind is Kind.DELETE:
                found[handle] = again(table.failures[handle])
        for handle in control.handles.tolist() if found else ():
            error = found.get(handle)
            if isinstance(error, SessionNotFound) and control.kind is not Kind.DETACH:
                del found[handle]
            elif isinstance(error, SessionNotFound | Moved) and control.kind is not Kind.DELETE:
                behind = bool(self._behind(np.array([handle]))[0])
                known = table.unheard.get(handle, True) if handle in table.failures else not behind
                if control.kind is Kind.END or known or self.durability == DURABILITY_MODE_NONE:
                    del found[handle]

    def _going(self, control: Control) -> Ints:
        """The sessions that are over; one that could not be deleted goes on for the other callers who have it."""
        table, refused = self._table, np.isin(control.handles, list(control.ticket.errors))
        staying = control.handles[refused & (table.holders[control.handles] > 0)]
        table.closing[staying] = 0
        table.leaving.difference_update(staying.tolist())
        return control.handles[~np.isin(control.handles, staying)] if staying.size else control.handles

    def _forget(self, gone: Ints) -> None:
        """Frees handles; of sessions that were deleted, and that others still have, once those have let go as well."""
        table = self._table
        shared = gone[table.holders[gone] > 0]
        table.release(gone[table.holders[gone] <= 0])
        for handle in shared.tolist():
            self._log.fail(handle, deleted_by_another(table.ids[handle]), heard=True)
            table.closing[handle] = ENDED
        table.forget_names(shared)


def deleted_by_another(session_id: str) -> Closed:
    """What callers are told who have a session that another caller of their client deleted."""
    return Closed(f"session {session_id!r} was deleted by another caller of this client; open it again to start anew")


def _batches(controls: list[Control]) -> Iterator[list[Control]]:
    batch, count = list[Control](), 0
    for control in controls:
        if batch and count + len(control.asked) > FRAME_SESSIONS:
            yield batch
            batch, count = [], 0
        batch.append(control)
        count += len(control.asked)
    if batch:
        yield batch
