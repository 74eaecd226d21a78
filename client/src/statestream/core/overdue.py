"""What has waited too long for an answer while the stream stands: found now and then, in columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from statestream.contract.tensors import Ints, Mask
from statestream.core.controls import Control, Controls
from statestream.core.departures import Departures
from statestream.core.opens import Opens
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
        starved: Whose steps wait for room in the replay buffer, and there is none.
    """

    sessions: Ints
    opens: list[OpenTicket]
    controls: list[Control]
    starved: Ints

    @property
    def any(self) -> bool:
        """Whether there is something."""
        return bool(self.sessions.size or self.opens or self.controls or self.starved.size)


class Overdue:
    """Measures how long each operation has waited since the last answer that was about it.

    Not with every operation, which would cost each of them, but when it is asked, every few seconds: what waits now and
    waited then, with nothing answered in between, has waited all the time.
    """

    def __init__(
        self, table: Table, departures: Departures, opens: Opens, sharing: Sharing, controls: Controls
    ) -> None:
        self._table = table
        self._departures = departures
        self._opens = opens
        self._sharing = sharing
        self._controls = controls
        self._left = 0
        self._starved_since = 0.0
        self._since: dict[Ticket | Control, tuple[int, float]] = {}

    def find(self, now: float, seconds: float) -> Found:
        """What has waited for more than so many seconds; `now` is the time of a monotonic clock."""
        since, self._since = self._since, {}
        tickets = {expected.ticket for expected in self._opens.redelivery.expected()}
        tickets |= {wish.ticket for wishes in self._sharing.waiting.values() for wish in wishes}
        for opening in [*self._opens.waiting, *self._opens.in_flight.values()]:
            for asker in opening.ticket.askers if opening.ticket is not None else ():
                if opening.revival or not asker.dropped:
                    tickets.add(asker)

        def late(one: Ticket | Control, mark: int = 0) -> bool:
            known = since.get(one)
            began = known[1] if known is not None and known[0] == mark else now
            self._since[one] = mark, began
            return now - began > seconds

        return Found(
            self._sessions(now, seconds),
            [ticket for ticket in tickets if not ticket.done and late(ticket, ticket.left)],
            [control for control in self._controls.under_way() if late(control)],
            self._starving(now, seconds),
        )

    def _starving(self, now: float, seconds: float) -> Ints:
        """The sessions whose next chunk has waited for room all the time, since nothing left."""
        departures, table = self._departures, self._table
        if not departures.starved or departures.left != self._left:
            self._left, self._starved_since = departures.left, now
        if now - self._starved_since <= seconds:
            return table.live()[:0]
        live = table.live()
        waits: Mask = (table.state[live] == State.OPEN) & (table.next[live] > table.sent[live])
        return live[waits]

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
