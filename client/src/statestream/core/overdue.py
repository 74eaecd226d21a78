"""What has waited too long for an answer while the stream stands: found now and then, in columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from statestream.contract.tensors import Ints
from statestream.core.chunks import Chunks
from statestream.core.controls import Control, Controls
from statestream.core.opens import Opens
from statestream.core.points import Point, Points
from statestream.core.sharing import Sharing
from statestream.core.table import State, Table
from statestream.core.tickets import OpenTicket, Ticket


@dataclass(frozen=True, slots=True)
class Found:
    """What is overdue.

    Attributes:
        sessions: Whose steps are not answered, or that are not open again.
        opens: First opens.
        controls: Flushes and closes that were sent.
        points: Resets that wait for what the server does not answer.
        backlog: Steps wait for room in the replay buffer, and there is none.
    """

    sessions: Ints
    opens: list[OpenTicket]
    controls: list[Control]
    points: list[Point]
    backlog: bool

    @property
    def any(self) -> bool:
        """Whether there is something."""
        return bool(self.sessions.size or self.opens or self.controls or self.points or self.backlog)


class Overdue:
    """Measures how long each operation has waited since the last answer that was about it.

    Not with every operation, which would cost each of them, but when it is asked, every few seconds: what waits now and
    waited then, with nothing answered in between, has waited all the time.
    """

    def __init__(
        self, table: Table, chunks: Chunks, opens: Opens, sharing: Sharing, points: Points, controls: Controls
    ) -> None:
        self._table = table
        self._chunks = chunks
        self._opens = opens
        self._sharing = sharing
        self._points = points
        self._controls = controls
        self._since: dict[Ticket | Control | Point, tuple[int, float]] = {}

    def find(self, now: float, seconds: float) -> Found:
        """What has waited for more than so many seconds; `now` is the time of a monotonic clock."""
        since, self._since = self._since, {}
        tickets = {expected.ticket for expected in self._opens.returned.expected()}
        tickets |= {wish.ticket for wishes in self._sharing.waiting.values() for wish in wishes}
        for opening in [*self._opens.waiting, *self._opens.in_flight.values()]:
            for asker in opening.ticket.askers if opening.ticket is not None else ():
                if opening.revival or not asker.dropped:
                    tickets.add(asker)

        def late(one: Ticket | Control | Point, mark: int = 0) -> bool:
            known = since.get(one)
            began = known[1] if known is not None and known[0] == mark else now
            self._since[one] = mark, began
            return now - began > seconds

        backlog = self._chunks.backlog
        return Found(
            self._sessions(now, seconds),
            [ticket for ticket in tickets if not ticket.done and late(ticket, ticket.left)],
            [control for control in self._controls.asked() if late(control)],
            [point for point in self._points.stuck() if self._is_stuck(point) and late(point)],
            bool(backlog) and late(backlog[0]),
        )

    def _sessions(self, now: float, seconds: float) -> Ints:
        table = self._table
        size, stamp = table.size, 1 + int(now * 1000)
        state, answered, epoch = table.state[:size], table.answered[:size], table.epoch[:size]
        # What was not sent waits for room or for its turn, and so for what was.
        waits = (state >= State.OPEN) & (state <= State.LOST) & (table.in_flight[:size] > 0)
        waits &= table.next[:size] > answered
        waits |= state == State.LOST
        stalled = table.stalled[:size]
        same = waits & (stalled > 0) & (table.stalled_at[:size] == answered) & (table.stalled_epoch[:size] == epoch)
        stalled[:] = np.where(waits, np.where(same, stalled, stamp), 0)
        table.stalled_at[:size], table.stalled_epoch[:size] = answered, epoch
        return np.flatnonzero(waits & (stamp - stalled > seconds * 1000))

    def _is_stuck(self, point: Point) -> bool:
        """Whether a reset waits for answers to chunks that were given up."""
        state = self._table.state
        return any(state.item(handle) == State.FAILED for handle in point.handles)
