"""Operations on sessions that wait for the chunks before them: flush, close, and waiting until all is answered."""

from __future__ import annotations

import enum
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


class Controls:
    """Operations that wait, and those in flight."""

    def __init__(self, table: Table, chunks: Chunks) -> None:
        self.waiting: list[Control] = []
        self.in_flight: dict[int, Control] = {}
        self._table = table
        self._chunks = chunks

    def add(self, kind: Kind, handles: Ints) -> ControlTicket:
        """Asks for something that takes effect after the chunks submitted before."""
        ticket = ControlTicket(max(1, -(-len(handles) // FRAME_SESSIONS)))
        for low in range(0, max(1, len(handles)), FRAME_SESSIONS):
            self.waiting.append(Control(kind, handles[low : low + FRAME_SESSIONS], ticket))
        return ticket

    def lost(self) -> None:
        """The stream is gone: what was in flight waits again."""
        self.waiting[:0] = self.in_flight.values()
        self.in_flight.clear()

    def ready(self) -> list[Control]:
        """Takes those whose turn has come; such as need no frame are done here."""
        ready, rest = [], []
        for control in self.waiting:
            failed = self._table.state[control.handles] == State.FAILED
            control.sent = control.handles[~failed]
            if failed.any() and control.kind in (Kind.FLUSH, Kind.SETTLE):
                for handle in control.handles[failed].tolist():
                    control.ticket.errors[handle] = again(self._table.failures[handle])
            if not self._turn(control):
                rest.append(control)
            elif control.kind is Kind.SETTLE or not control.sent.size:
                self._finish(control)
            else:
                ready.append(control)
        self.waiting = rest
        return ready

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

    def encode(self, control: Control, frame: int) -> StreamRequest:
        """The frame of an operation, noted as in flight."""
        self.in_flight[frame] = control
        handles = handles_column(control.sent)
        if control.kind is Kind.FLUSH:
            return StreamRequest(frame=frame, flush=FlushFrame(handles=handles))
        action = CLOSE_ACTION_DELETE if control.kind is Kind.DELETE else CLOSE_ACTION_DETACH
        return StreamRequest(frame=frame, close=CloseFrame(handles=handles, action=action))

    def closed(self, frame: int, message: ClosedFrame) -> None:
        """The answer to a close. A session that was not open here any more is as closed as it can be."""
        control = self.in_flight.pop(frame, None)
        if control is not None:
            for row_error in message.errors:
                control.ticket.errors[row_error.handle] = from_status(row_error.status)
            self._finish(control)

    def flushed(self, frame: int, message: DurableFrame) -> None:
        """The answer to a flush."""
        control = self.in_flight.pop(frame, None)
        if control is not None:
            for row_error in message.errors:
                control.ticket.errors[row_error.handle] = from_status(row_error.status)
            self._finish(control)

    def refuse_frame(self, frame: int, error: StatestreamError) -> bool:
        """Refuses an operation; False where the frame carried none."""
        control = self.in_flight.pop(frame, None)
        if control is None:
            return False
        self._give_up(control, error)
        return True

    def give_up(self, error: StatestreamError) -> None:
        """Fails everything."""
        for control in [*self.in_flight.values(), *self.waiting]:
            self._give_up(control, error)
        self.in_flight.clear()
        self.waiting.clear()

    def _give_up(self, control: Control, error: StatestreamError) -> None:
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


def acknowledge(table: Table, handles: Ints, frame: int) -> StreamRequest:
    """A frame that acknowledges replies without a chunk."""
    answered = table.answered[handles]
    table.acked[handles] = answered
    table.unacked[handles] = 0
    ack = AckFrame(handles=handles_column(handles), acked_positions=positions_column(answered))
    return StreamRequest(frame=frame, ack=ack)
