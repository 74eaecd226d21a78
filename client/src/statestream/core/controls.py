"""Operations on sessions that wait for the chunks before them: flush, close, and waiting until all is answered."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from statestream.core.chunks import Chunks
from statestream.core.table import State, Table
from statestream.core.tickets import ControlTicket, again
from statestream.errors import StatestreamError, from_status
from statestream.v1.inference_pb2 import (
    CLOSE_ACTION_DELETE,
    CLOSE_ACTION_DETACH,
    AckFrame,
    ClosedFrame,
    CloseFrame,
    DurableFrame,
    FlushFrame,
    StreamRequest,
)
from statestream.v1.tensor_pb2 import RowError
from statestream.wire import Ints, handles_column, positions_column

FRAME_SESSIONS = 100_000
"""The most sessions in one frame."""


class Kind(enum.Enum):
    """What is wanted."""

    FLUSH = "flush"
    DETACH = "detach"
    DELETE = "delete"
    SETTLE = "settle"
    """All chunks answered, the session bound: nothing is sent."""


@dataclass(eq=False, slots=True)
class Control:
    """One operation on some sessions."""

    kind: Kind
    handles: Ints
    ticket: ControlTicket
    sent: Ints = field(default_factory=lambda: np.zeros(0, np.int64))


def controls_for(kind: Kind, handles: Ints) -> tuple[ControlTicket, list[Control]]:
    """What is wanted of some sessions, cut into as many operations as it takes frames, and who waits for them."""
    ticket = ControlTicket(max(1, -(-len(handles) // FRAME_SESSIONS)))
    lows = range(0, max(1, len(handles)), FRAME_SESSIONS)
    return ticket, [Control(kind, handles[low : low + FRAME_SESSIONS], ticket) for low in lows]


class Controls:
    """Operations that wait, and those in flight."""

    def __init__(self, table: Table, chunks: Chunks) -> None:
        self.waiting: list[Control] = []
        self.in_flight: dict[int, list[Control]] = {}
        self._table = table
        self._chunks = chunks

    def submit(self, control: Control) -> None:
        """Asks for something that takes effect after the chunks submitted before."""
        self.waiting.append(control)

    def closes(self, handles: Ints) -> bool:
        """Whether some of these sessions are being let go."""
        under_way = [*self.waiting, *(control for batch in self.in_flight.values() for control in batch)]
        return any(
            control.kind in (Kind.DETACH, Kind.DELETE) and bool(np.isin(handles, control.handles).any())
            for control in under_way
        )

    def lost(self) -> None:
        """The stream is gone: what was in flight waits again."""
        self.waiting[:0] = [control for batch in self.in_flight.values() for control in batch]
        self.in_flight.clear()

    def ready(self) -> list[list[Control]]:
        """Takes those whose turn has come, as many as possible together; such as need no frame are done here."""
        ready: dict[Kind, list[Control]] = {}
        rest = []
        for control in self.waiting:
            state = self._table.state[control.handles]
            failed = state == State.FAILED
            # Free is what another close has let go meanwhile.
            control.sent = control.handles[~failed & (state != State.FREE)]
            if failed.any() and control.kind in (Kind.FLUSH, Kind.SETTLE):
                for handle in control.handles[failed].tolist():
                    control.ticket.errors[handle] = again(self._table.failures[handle])
            if not self._turn(control):
                rest.append(control)
            elif control.kind is Kind.SETTLE or not control.sent.size:
                self._finish(control)
            else:
                ready.setdefault(control.kind, []).append(control)
        self.waiting = rest
        return [batch for alike in ready.values() for batch in _batches(alike)]

    def offline(self) -> None:
        """Without a stream: lets go of sessions that have nothing to lose by it."""
        rest = []
        for control in self.waiting:
            handles = control.handles[self._table.state[control.handles] != State.FAILED]
            table = self._table
            if control.kind is Kind.DETACH and bool((table.answered[handles] == table.next[handles]).all()):
                self._finish(control)
            else:
                rest.append(control)
        self.waiting = rest

    def encode(self, batch: list[Control], frame: int) -> StreamRequest:
        """The frame of operations of one kind, noted as in flight."""
        self.in_flight[frame] = batch
        # Two callers may flush the same session; a handle comes once in a frame.
        sent = batch[0].sent if len(batch) == 1 else np.unique(np.concatenate([control.sent for control in batch]))
        handles = handles_column(sent)
        if batch[0].kind is Kind.FLUSH:
            return StreamRequest(frame=frame, flush=FlushFrame(handles=handles))
        action = CLOSE_ACTION_DELETE if batch[0].kind is Kind.DELETE else CLOSE_ACTION_DETACH
        return StreamRequest(frame=frame, close=CloseFrame(handles=handles, action=action))

    def closed(self, frame: int, message: ClosedFrame) -> None:
        """The answer to a close. A session that was not open here any more is as closed as it can be."""
        self._answered(frame, message.errors)

    def flushed(self, frame: int, message: DurableFrame) -> None:
        """The answer to a flush."""
        self._answered(frame, message.errors)

    def refuse_frame(self, frame: int, error: StatestreamError) -> bool:
        """Refuses an operation; False where the frame carried none."""
        batch = self.in_flight.pop(frame, None)
        if batch is None:
            return False
        for control in batch:
            self.abort(control, error)
        return True

    def give_up(self, error: StatestreamError) -> None:
        """Fails everything."""
        self.lost()
        for control in self.waiting:
            self.abort(control, error)
        self.waiting.clear()

    def _answered(self, frame: int, refusals: Iterable[RowError]) -> None:
        found = {refusal.handle: from_status(refusal.status) for refusal in refusals}
        for control in self.in_flight.pop(frame, ()):
            if found:
                for handle in control.sent.tolist():
                    if handle in found:
                        control.ticket.errors[handle] = again(found[handle])
            self._finish(control)

    def abort(self, control: Control, error: StatestreamError) -> None:
        """Fails one operation."""
        for handle in control.handles.tolist():
            control.ticket.errors.setdefault(handle, again(error))
        self._finish(control)

    def _turn(self, control: Control) -> bool:
        table, handles = self._table, control.sent
        if (table.state[handles] != State.OPEN).any() or table.stale[handles].any():
            return False
        if control.kind is Kind.FLUSH:
            return bool((table.sent[handles] == table.next[handles]).all())
        return bool((table.answered[handles] == table.next[handles]).all()) and not table.in_flight[handles].any()

    def _finish(self, control: Control) -> None:
        if control.kind in (Kind.DETACH, Kind.DELETE):
            self._table.release(control.handles)
        control.ticket.part_done()


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


def acknowledge(table: Table, handles: Ints, frame: int) -> StreamRequest:
    """A frame that acknowledges replies without a chunk."""
    answered = table.acknowledgeable(handles)
    table.acked[handles] = answered
    table.unacked[handles] = 0
    ack = AckFrame(handles=handles_column(handles), acked_positions=positions_column(answered))
    return StreamRequest(frame=frame, ack=ack)
