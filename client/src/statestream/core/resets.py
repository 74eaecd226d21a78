"""What takes its turn among the chunks of a session, before and after it: starting anew, and settling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from statestream.contract.errors import StatestreamError
from statestream.contract.tensors import Ints
from statestream.core.buffer import ReplayBuffer
from statestream.core.chunks import Chunks
from statestream.core.controls import Control, Controls, Kind
from statestream.core.opens import Opens
from statestream.core.table import State, Table
from statestream.core.tickets import OpenTicket, PoolTicket, StepTicket, Ticket, again, are_about


@dataclass(eq=False, slots=True)
class Reset:
    """Sessions that start anew.

    Attributes:
        handles: [N] the sessions.
        ticket: Who waits.
        begun: Everything before it is answered and the server was, or is about to be, asked.
    """

    handles: Ints
    ticket: OpenTicket
    begun: bool = False


Operation: TypeAlias = Reset | StepTicket | PoolTicket | Control


class Resets:
    """Resets and settles, and the operations behind them, in the order of submission; empty while there are none.

    A chunk has a position as soon as it is submitted, and a reset takes positions back to 0. So what comes behind a
    reset is submitted once the reset has ended. A session that is stepped without a pause would never settle: what
    comes behind a settle waits as well. What concerns other sessions passes by.
    """

    def __init__(self, table: Table, buffer: ReplayBuffer, chunks: Chunks, opens: Opens, controls: Controls) -> None:
        self.queue: list[Operation] = []
        self._concerned: set[int] = set()
        self._table = table
        self._buffer = buffer
        self._chunks = chunks
        self._opens = opens
        self._controls = controls

    def add(self, handles: Ints) -> OpenTicket:
        """Starts sessions anew after everything submitted for them before."""
        reset = Reset(handles, OpenTicket(handles))
        reset.ticket.dropped = True  # Its sessions are open whatever becomes of it.
        self._keep(reset, _handles(reset))
        return reset.ticket

    def submit(self, operation: StepTicket | PoolTicket | Control) -> None:
        """Submits an operation, or keeps it until the resets and settles before it have ended."""
        handles = _handles(operation)
        if not self._concerned.isdisjoint(handles) or self._pass_on(operation):
            self._keep(operation, handles)

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Drops what waits here; a reset that has begun and a settle go on, and what is behind still waits for them."""
        unwanted = set(tickets)
        self.queue = [
            one
            for one in self.queue
            if (one.ticket if isinstance(one, Reset) and not one.begun else one) not in unwanted
        ]

    def advance(self) -> None:
        """Begins the resets whose turn has come, and submits what has nothing before it any more."""
        queue = self.queue
        self.queue, self._concerned = [], set()
        beginning: list[Reset] = []
        for operation in queue:
            begun = isinstance(operation, Reset | Control) and operation.begun
            if isinstance(operation, Reset | Control) and begun and operation.ticket.done:
                continue
            handles = _handles(operation)
            if not begun and self._concerned.isdisjoint(handles):
                if not isinstance(operation, Reset):
                    if not self._pass_on(operation):
                        continue
                elif self._turn(operation.handles):
                    operation.begun = True
                    beginning.append(operation)
            self._keep(operation, handles)
        if beginning:
            self._begin(beginning)

    def overdue(self, reset: Reset, error: StatestreamError) -> None:
        """Fails a reset whose turn does not come, and with it what is submitted behind it."""
        self.queue.remove(reset)
        for handle in reset.handles.tolist():
            self._chunks.fail(handle, again(error), heard=True)
        _refuse(reset, np.arange(len(reset.handles)), error)

    def give_up(self, error: StatestreamError) -> None:
        """Fails everything that waits here."""
        queue = self.queue
        self.queue, self._concerned = [], set()
        for operation in queue:
            if isinstance(operation, StepTicket | PoolTicket):
                operation.finish(error=again(error))
            elif operation.begun:
                continue  # It is the server's, or the controls', by now.
            elif isinstance(operation, Control):
                self._controls.abort(operation, error)
            else:
                _refuse(operation, np.arange(len(operation.handles)), error)

    def _keep(self, operation: Operation, handles: set[int]) -> None:
        self.queue.append(operation)
        self._concerned |= handles

    def _pass_on(self, operation: StepTicket | PoolTicket | Control) -> bool:
        """Submits an operation; whether what comes behind it has to wait for it."""
        if not isinstance(operation, Control):
            self._chunks.submit(operation)
            return False
        operation.begun = operation.kind is Kind.SETTLE
        self._controls.submit(operation)
        return operation.begun

    def _turn(self, handles: Ints) -> bool:
        """Whether nothing of the old histories is under way: no chunk, no replay."""
        table = self._table
        state = table.state[handles]
        if not ((state == State.OPEN) | (state == State.FAILED)).all() or are_about(self._chunks.backlog, handles):
            return False
        idle = (table.answered[handles] == table.next[handles]) & (table.sent[handles] == table.next[handles])
        return bool(idle.all()) and not table.in_flight[handles].any() and not table.stale[handles].any()

    def _begin(self, resets: list[Reset]) -> None:
        table = self._table
        self._buffer.forget(np.concatenate([reset.handles for reset in resets]))
        for reset in resets:
            handles = reset.handles
            for handle in handles.tolist():
                table.failures.pop(handle, None)
                table.initial.pop(handle, None)
                table.untaken.pop(handle, None)
                table.unheard.pop(handle, None)
            self._opens.reset(handles, reset.ticket)


def _refuse(reset: Reset, rows: Ints, error: StatestreamError) -> None:
    for row in rows.tolist():
        reset.ticket.refuse(row, again(error))
    reset.ticket.count(rows)


def _handles(operation: Operation) -> set[int]:
    return {operation.handle} if isinstance(operation, StepTicket) else set(operation.handles.tolist())
