"""Points at which a session must be before others go on: settled, or open again after it failed."""

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
from statestream.v1.inference_pb2 import MARK_RESET

Operation: TypeAlias = StepTicket | PoolTicket | Control


@dataclass(eq=False, slots=True)
class Point:
    """An operation that waits, or that others wait for.

    Attributes:
        operation: It.
        handles: Its sessions.
        until: What it waits for itself, once that is under way: that its sessions have settled, or are open again.
    """

    operation: Operation
    handles: set[int]
    until: Ticket | None = None


class Points:
    """Settles, resets of sessions that failed, and the operations behind them, in order; empty while there are none.

    A session that is stepped without a pause would never settle, so what comes behind a settle waits. One that failed
    has no position, so it is opened again as it is on the server before a reset is sent. What concerns other sessions
    passes by.
    """

    def __init__(self, table: Table, buffer: ReplayBuffer, chunks: Chunks, opens: Opens, controls: Controls) -> None:
        self.queue: list[Point] = []
        self._concerned: set[int] = set()
        self._table = table
        self._buffer = buffer
        self._chunks = chunks
        self._opens = opens
        self._controls = controls

    def submit(self, operation: Operation) -> None:
        """Submits an operation, or keeps it until the points before it are reached."""
        point = Point(operation, _handles(operation))
        if not self._concerned.isdisjoint(point.handles) or not self._pass_on(point):
            self._keep(point)

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Drops what waits here; what has begun goes on, and what is behind still waits for it."""
        self.queue = [point for point in self.queue if point.until is not None or point.operation not in tickets]

    def advance(self) -> None:
        """Submits what has nothing before it any more."""
        queue, self.queue, self._concerned = self.queue, [], set()
        for point in queue:
            if point.until is None:
                if not self._concerned.isdisjoint(point.handles) or not self._pass_on(point):
                    self._keep(point)
            elif not point.until.done:
                self._keep(point)
            elif not isinstance(point.operation, Control):
                self._chunks.submit(point.operation)  # To a session that failed once more it says so.

    def stuck(self) -> list[Point]:
        """Resets that wait for answers to chunks that were given up."""
        return [point for point in self.queue if point.until is None and not isinstance(point.operation, Control)]

    def overdue(self, point: Point, error: StatestreamError) -> None:
        """Fails an operation whose turn does not come."""
        self.queue.remove(point)
        assert not isinstance(point.operation, Control)
        point.operation.finish(error=again(error))

    def give_up(self, error: StatestreamError) -> None:
        """Fails everything that waits here."""
        queue, self.queue, self._concerned = self.queue, [], set()
        for point in queue:
            if not isinstance(point.operation, Control):
                point.operation.finish(error=again(error))
            elif point.until is None:
                self._controls.abort(point.operation, error)

    def _keep(self, point: Point) -> None:
        self.queue.append(point)
        self._concerned |= point.handles

    def _pass_on(self, point: Point) -> bool:
        """Submits an operation, where it can be; False where it, or what comes behind it, has to wait here."""
        operation = point.operation
        if isinstance(operation, Control):
            self._controls.submit(operation)
            point.until = operation.ticket if operation.kind is Kind.SETTLE else None
            return point.until is None
        handles = np.array(sorted(point.handles), np.int64)
        failed = handles[self._table.state[handles] == State.FAILED]
        if operation.lane.mark != MARK_RESET or not failed.size:
            self._chunks.submit(operation)
            return True
        # Late answers to what was sent before must not be taken for those to what is sent then, and steps from before
        # the reset that wait for room must not be let in behind it.
        late = self._table.in_flight[failed].any() or self._table.stale[failed].any()
        if not (late or are_about(self._chunks.backlog, failed)):
            point.until = self._revive(failed)
        return False

    def _revive(self, handles: Ints) -> OpenTicket:
        table, ticket = self._table, OpenTicket(handles)
        ticket.dropped = True  # Its sessions are open whatever becomes of it.
        self._buffer.forget(handles)
        for handle in handles.tolist():
            for known in (table.failures, table.initial, table.untaken, table.unheard):
                known.pop(handle, None)
        self._opens.revive(handles, ticket)
        return ticket


def _handles(operation: Operation) -> set[int]:
    return {operation.handle} if isinstance(operation, StepTicket) else set(operation.handles.tolist())
