"""Operations on sessions that wait for the chunks before them: flush, close, and waiting until all is answered."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from statestream.contract.errors import (
    Closed,
    Moved,
    Overloaded,
    SessionNotFound,
    StatestreamError,
    Unavailable,
    from_status,
)
from statestream.contract.tensors import Ints, handles_column, positions_column
from statestream.core.chunks import Chunks
from statestream.core.table import ENDED, State, Table
from statestream.core.tickets import ControlTicket, again, are_about
from statestream.v1.inference_pb2 import (
    CLOSE_ACTION_DELETE,
    CLOSE_ACTION_DETACH,
    DURABILITY_MODE_INTERVAL,
    DURABILITY_MODE_NONE,
    AckFrame,
    ClosedFrame,
    CloseFrame,
    DurabilityMode,
    DurableFrame,
    FlushFrame,
    StreamRequest,
)
from statestream.v1.tensor_pb2 import RowError

FRAME_ACKS = 1 << 18
"""The most sessions in a frame that acknowledges."""

FRAME_SESSIONS = 16_384
"""The most sessions in one frame."""

RETRY_SECONDS = 0.2
"""How long a close that the server cannot serve now is held where it names no time."""


class Kind(enum.Enum):
    """What is wanted."""

    FLUSH = "flush"
    DETACH = "detach"
    DELETE = "delete"
    END = "end"
    """A close of sessions that end with their callers: they are deleted."""
    SETTLE = "settle"
    """All chunks answered, the session bound: nothing is sent."""
    JOIN = "join"
    """Another close of these sessions is under way, and this is done when that is: nothing is sent."""


@dataclass(eq=False, slots=True)
class Control:
    """One operation on some sessions.

    Attributes:
        kind: What is wanted.
        handles: [N] the sessions.
        ticket: Who waits.
        for_room: Steps that wait for room wait for this flush, not it for them.
        flush: What a close makes durable first, where there is something.
        saving: It is such a flush.
        sent: [M] those that its frame is about.
        ends: [M] where their last chunk before that frame ends.
        not_before: When it may leave, where the server could not serve it.
        since: When that was for the first time.
    """

    kind: Kind
    handles: Ints
    ticket: ControlTicket
    for_room: bool = False
    flush: ControlTicket | None = None
    saving: bool = False
    not_before: float = 0.0
    since: float = 0.0
    sent: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    ends: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def lets_go(self) -> bool:
        """Whether the sessions are let go."""
        return self.kind in (Kind.DETACH, Kind.DELETE, Kind.END)


def controls_for(*wanted: tuple[Kind, Ints]) -> tuple[ControlTicket, list[Control]]:
    """What is wanted of some sessions, cut into as many operations as it takes frames, and who waits for all of it."""
    ticket = ControlTicket()
    controls = [
        Control(kind, handles[low : low + FRAME_SESSIONS], ticket)
        for kind, handles in wanted
        for low in range(0, len(handles), FRAME_SESSIONS)
    ]
    ticket.left = len(controls)
    if not controls:
        ticket.finish()
    return ticket, controls


class Controls:
    """Operations that wait, and those in flight."""

    def __init__(self, table: Table, chunks: Chunks, retry_seconds: float) -> None:
        self.durability: DurabilityMode = DURABILITY_MODE_NONE
        self.on_gone: Callable[[Ints], None] = _nothing
        """Hears of sessions that were let go, once that is noted."""
        self.failed: list[Ints] = []
        """Sessions that had failed when they were let go: the server may have them on the stream all the same."""
        self.retry_seconds = retry_seconds
        self.waiting: list[Control] = []
        self.in_flight: dict[int, list[Control]] = {}
        self._table = table
        self._chunks = chunks

    def submit(self, control: Control) -> None:
        """Asks for something that takes effect after the chunks submitted before."""
        self.waiting.append(control)

    def flush_for_room(self) -> None:
        """Asks for everything to be made durable that takes room in the replay buffer until then."""
        table = self._table
        handles = np.flatnonzero((table.durable < table.answered) & (table.state == State.OPEN))
        # Past the points: they may wait for steps that wait for this room.
        for control in controls_for((Kind.FLUSH, handles))[1]:
            control.for_room = True
            self.submit(control)

    def lost(self) -> None:
        """The stream is gone: what was in flight waits again."""
        self.waiting[:0] = [control for batch in self.in_flight.values() for control in batch]
        self.in_flight.clear()
        self.failed.clear()

    def ready(self, now: float) -> list[list[Control]]:
        """Takes those whose turn has come, as many as possible together; such as need no frame are done here."""
        # Flushes leave first: one of a session that another closes in the same turn was asked for before that.
        ready: dict[Kind, list[Control]] = {Kind.FLUSH: []}
        rest, done = list[Control](), list[Control]()
        for control in self.waiting:
            state = self._table.state[control.handles]
            failed = state == State.FAILED
            control.sent = control.handles[~failed]
            if failed.any() and control.kind in (Kind.FLUSH, Kind.SETTLE) and not control.saving:
                for handle in control.handles[failed].tolist():
                    # Where what came behind it, a delete of our own, has happened, it is as good as done.
                    if not (
                        handle in self._table.leaving and isinstance(self._table.failures[handle], SessionNotFound)
                    ):
                        control.ticket.errors[handle] = self._table.failure(handle)
            if control.not_before > now or not self._turn(control):
                rest.append(control)
            elif control.kind in (Kind.SETTLE, Kind.JOIN) or not control.sent.size:
                done.append(control)
            elif (saving := self._saving(control)) is not None:
                ready.setdefault(Kind.FLUSH, []).append(saving)
                rest.append(control)
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
            safe = not self._behind(handles).size and not are_about(self._chunks.backlog, control.handles)
            (done if control.kind is Kind.DETACH and idle and safe else rest).append(control)
        self.waiting = rest
        self._finish(done)

    def encode(self, batch: list[Control], frame: int) -> StreamRequest:
        """The frame of operations of one kind, noted as in flight."""
        self.in_flight[frame] = batch
        # Two callers may flush the same session; a handle comes once in a frame.
        sent = batch[0].sent if len(batch) == 1 else np.unique(np.concatenate([control.sent for control in batch]))
        handles = handles_column(sent)
        if batch[0].kind is Kind.FLUSH:
            for control in batch:
                control.ends = self._table.sent[control.sent]
            return StreamRequest(frame=frame, flush=FlushFrame(handles=handles))
        self._table.leaving.update(sent.tolist())
        action = CLOSE_ACTION_DETACH if batch[0].kind is Kind.DETACH else CLOSE_ACTION_DELETE
        return StreamRequest(frame=frame, close=CloseFrame(handles=handles, action=action))

    def unbind(self, frame: int) -> StreamRequest:
        """A frame that has the server let go of sessions that had failed; nobody waits for its answer."""
        handles, self.failed = np.unique(np.concatenate(self.failed)), []
        return StreamRequest(frame=frame, close=CloseFrame(handles=handles_column(handles), action=CLOSE_ACTION_DETACH))

    def closed(self, frame: int, message: ClosedFrame, now: float) -> None:
        """The answer to a close. A session that was not open here any more is as closed as it can be."""
        self._answered(frame, message.errors, now)

    def flushed(self, frame: int, message: DurableFrame, now: float) -> None:
        """The answer to a flush."""
        self._answered(frame, message.errors, now)

    def refuse_frame(self, frame: int, error: StatestreamError, now: float) -> bool:
        """Refuses an operation, or asks for it again; False where the frame carried none."""
        batch = self.in_flight.pop(frame, None)
        if batch is None:
            return False
        self._abort([control for control in batch if not self._again(control, error, now)], error)
        return True

    def due(self) -> float | None:
        """When the next one may leave, of those that must wait."""
        return min((control.not_before for control in self.waiting if control.not_before), default=None)

    def asked(self) -> list[Control]:
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

    def _answered(self, frame: int, refusals: Iterable[RowError], now: float) -> None:
        found = {refusal.handle: from_status(refusal.status) for refusal in refusals}
        batch = self.in_flight.pop(frame, [])
        later = []
        for control in batch if found else ():
            mine = {handle: found[handle] for handle in control.sent.tolist() if handle in found}
            away = next((error for error in mine.values() if isinstance(error, Unavailable | Overloaded)), None)
            if away is not None and self._again(control, away, now):
                later.append(control)
                continue
            control.ticket.errors.update((handle, again(error)) for handle, error in mine.items())
        short = [one for one in batch if one.kind is Kind.FLUSH and one not in later and self._fell_short(one)]
        self.waiting.extend(short)
        self._finish([one for one in batch if one not in short and one not in later] if short or later else batch)

    def _again(self, control: Control, error: StatestreamError, now: float) -> bool:
        """Whether a close that the server cannot serve now is asked for again: it must not be forgotten half done."""
        control.since = control.since or now
        if not (control.lets_go or control.saving) or not isinstance(error, Unavailable | Overloaded):
            return False
        if now - control.since >= self.retry_seconds:
            return False
        control.not_before = now + (RETRY_SECONDS if error.retry_after is None else error.retry_after)
        self.waiting.append(control)
        return True

    def _fell_short(self, control: Control) -> bool:
        """Whether a flush missed chunks that were sent before it, because the server put them off; it is repeated."""
        table, sent = self._table, control.sent
        missed = table.durable[sent] < np.minimum(control.ends, table.next[sent])
        if self.durability == DURABILITY_MODE_NONE or not missed.any():
            return False
        control.handles = np.array([one for one in sent[missed].tolist() if one not in control.ticket.errors], np.int64)
        return bool(control.handles.size)

    def abort(self, control: Control, error: StatestreamError) -> None:
        """Fails one operation that is not, or no longer, among those here."""
        self._abort([control], error)

    def _abort(self, controls: Sequence[Control], error: StatestreamError) -> None:
        for control in controls:
            for handle in control.handles.tolist():
                control.ticket.errors.setdefault(handle, again(error))
        self._finish(controls)

    def _turn(self, control: Control) -> bool:
        table, handles = self._table, control.sent
        if control.kind is Kind.JOIN:
            return not control.handles.size
        if (table.state[handles] != State.OPEN).any() or table.stale[handles].any():
            return False
        if not control.for_room and are_about(self._chunks.backlog, control.handles):
            return False
        if control.flush is not None and not control.flush.done:
            return False
        if control.kind is Kind.FLUSH:
            return bool((table.sent[handles] == table.next[handles]).all())
        return bool((table.answered[handles] == table.next[handles]).all()) and not table.in_flight[handles].any()

    def _behind(self, handles: Ints) -> Ints:
        """The sessions whose last steps only this client could replay, were they let go now."""
        table = self._table
        if self.durability != DURABILITY_MODE_INTERVAL:
            return handles[:0]
        return handles[table.durable[handles] < table.answered[handles]]

    def _saving(self, control: Control) -> Control | None:
        """The flush that a close has to wait for first, once; its errors are the close's."""
        if control.kind is not Kind.DETACH or control.flush is not None:
            return None
        behind = self._behind(control.sent)
        if not behind.size:
            return None
        control.flush = ControlTicket()
        control.flush.errors = control.ticket.errors
        return Control(Kind.FLUSH, behind, control.flush, sent=behind, saving=True)

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
            for control in [*ready, *self.waiting, *self.asked()]:
                control.handles = control.handles[~np.isin(control.handles, gone)]
            self.on_gone(np.concatenate([control.handles for control in leaving]))
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
            if isinstance(error, SessionNotFound):
                del found[handle]
            elif isinstance(error, Moved) and control.kind is not Kind.DELETE:
                known = table.unheard.get(handle, True) if handle in table.failures else not self._behind_one(handle)
                if control.kind is Kind.END or known or self.durability == DURABILITY_MODE_NONE:
                    del found[handle]

    def _going(self, control: Control) -> Ints:
        """The sessions that are over; one that could not be deleted goes on for the other callers who have it."""
        table, refused = self._table, np.isin(control.handles, list(control.ticket.errors))
        staying = control.handles[refused & (table.holders[control.handles] > 0)]
        table.closing[staying] = 0
        table.leaving.difference_update(staying.tolist())
        return control.handles[~np.isin(control.handles, staying)] if staying.size else control.handles

    def _behind_one(self, handle: int) -> bool:
        table = self._table
        return bool(table.durable[handle] < table.answered[handle])

    def _forget(self, gone: Ints) -> None:
        """Frees handles; of sessions that were deleted, and that others still have, once those have let go as well."""
        table = self._table
        shared = gone[table.holders[gone] > 0]
        table.release(gone[table.holders[gone] <= 0])
        for handle in shared.tolist():
            self._chunks.fail(handle, deleted_by_another(table.ids[handle]), heard=True)
            table.closing[handle] = ENDED
        table.forget_names(shared)


def deleted_by_another(session_id: str) -> Closed:
    """What callers are told who have a session that another caller of their client deleted."""
    return Closed(f"session {session_id!r} was deleted by another caller of this client; open it again to start anew")


def _nothing(*_: object) -> None:
    """What nobody hears."""


def _batches(controls: list[Control]) -> Iterator[list[Control]]:
    batch: list[Control] = []
    count = 0
    for control in controls:
        if batch and count + len(control.sent) > FRAME_SESSIONS:
            yield batch
            batch, count = [], 0
        batch.append(control)
        count += len(control.sent)
    if batch:
        yield batch


def acknowledge(table: Table, handles: Ints, number: Callable[[], int]) -> list[StreamRequest]:
    """Frames that acknowledge replies without a chunk; `number` gives their numbers."""
    answered = table.acknowledgeable(handles)
    table.acked[handles] = answered
    table.unacked[handles] = 0
    cuts = (slice(low, low + FRAME_ACKS) for low in range(0, len(handles), FRAME_ACKS))
    return [
        StreamRequest(
            frame=number(),
            ack=AckFrame(handles=handles_column(handles[cut]), acked_positions=positions_column(answered[cut])),
        )
        for cut in cuts
    ]
