"""What has waited too long for an answer while the stream stands: found now and then, in columns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from statestream.contract.errors import ServerUnavailable
from statestream.contract.tensors import Ints, Mask
from statestream.core.controls import Control, Controls, Kind
from statestream.core.departures import Departures
from statestream.core.log import Log
from statestream.core.opens import Opens
from statestream.core.predictions import Predictions
from statestream.core.room import ReplayBuffer
from statestream.core.sharing import Sharing
from statestream.core.table import State, Table
from statestream.core.tickets import OpenTicket, Ticket, again


class Overdue:
    """Measures how long each operation has waited since the last answer that was about it.

    Not with every operation, which would cost each of them, but when it is asked, every few seconds: what waits now and
    waited then, with nothing answered in between, has waited all the time.
    """

    def __init__(
        self,
        table: Table,
        buffer: ReplayBuffer,
        log: Log,
        departures: Departures,
        opens: Opens,
        sharing: Sharing,
        controls: Controls,
        predictions: Predictions,
        cancel: Callable[[Ticket], None],
        seconds: float,
    ) -> None:
        """`cancel` lets an operation go that nobody waits for any more; `seconds` is how long an answer may take."""
        self._table = table
        self._buffer = buffer
        self._log = log
        self._departures = departures
        self._opens = opens
        self._sharing = sharing
        self._controls = controls
        self._predictions = predictions
        self._cancel = cancel
        self._seconds = seconds
        self._left = 0
        self._starved_since = 0.0
        self._since: dict[Ticket | Control, tuple[int, float]] = {}

    def check(self, now: float) -> bool:
        """Tells the callers of what has waited too long; whether there is something. `now` is monotonic."""
        since, self._since = self._since, {}

        def late(one: Ticket | Control, mark: int = 0) -> bool:
            known = since.get(one)
            began = known[1] if known is not None and known[0] == mark else now
            self._since[one] = mark, began
            return now - began > self._seconds

        sessions, starving = self._sessions(now), self._starving(now)
        opens = [ticket for ticket in self._asked() if not ticket.done and late(ticket, ticket.left)]
        controls = [control for control in self._controls.under_way() if late(control)]
        calls = [ticket for ticket in self._predictions.unanswered() if late(ticket)]
        for handle in sessions.tolist():
            position, session_id = int(self._table.answered[handle]), self._table.ids[handle]
            self._log.fail(
                handle,
                self._unanswered(
                    f"a step of session {session_id!r}",
                    f"Steps from position {position} on may or may not have been applied; open the session again and "
                    "compare its position.",
                ),
            )
        for ticket in opens:
            self._expire(ticket)
        for control in controls:
            what = "flush" if control.kind is Kind.FLUSH else "close"
            self._controls.overdue(control, self._unanswered(f"a {what}", "It may be done all the same."))
        for call in calls:
            error = self._unanswered(f"a call of model {call.kind.model!r}", "It may have run; nothing is left of it.")
            self._predictions.expire(call, error)
        for handle in starving.tolist():
            error = self._unanswered(
                "the flush that makes room in the replay buffer",
                f"The inputs of {self._buffer.bytes:,} bytes are kept until they are durable; a larger "
                "`replay_buffer_bytes` keeps more. The step was not sent.",
            )
            self._log.abandon(handle, self._table.sent.item(handle), error)
        return bool(sessions.size or opens or controls or calls or starving.size)

    def _asked(self) -> set[OpenTicket]:
        """First opens that are waited for."""
        tickets = {expected.ticket for expected in self._opens.redelivery.frames.values()}
        tickets |= {wish.ticket for wishes in self._sharing.waiting.values() for wish in wishes}
        for opening in [*self._opens.waiting, *self._opens.in_flight.values()]:
            for asker in opening.ticket.askers if opening.ticket is not None else ():
                if opening.revival or not asker.dropped:
                    tickets.add(asker)
        return tickets

    def _expire(self, ticket: OpenTicket) -> None:
        """Tells who waits for an open that it does not come; what comes of it all the same is let go."""
        reviving = ticket.dropped
        first = self._table.ids[ticket.handles.item(int(np.flatnonzero(~ticket.settled)[0]))]
        error = self._unanswered(f"the open of session {first!r}", "It may be done.")
        for handle in ticket.handles[~ticket.settled].tolist() if reviving else ():
            self._log.fail(handle, again(error), heard=True)
        ticket.finish(error=error)
        if not reviving:
            self._cancel(ticket)

    def _unanswered(self, what: str, then: str) -> ServerUnavailable:
        return ServerUnavailable(
            f"the server did not answer {what} for {self._seconds:g} s (`retry_timeout`), though the connection "
            f"stands. {then}"
        )

    def _starving(self, now: float) -> Ints:
        """The sessions whose next chunk has waited for room all the time, since nothing left."""
        departures, table = self._departures, self._table
        if not departures.starved or departures.left != self._left:
            self._left, self._starved_since = departures.left, now
        if now - self._starved_since <= self._seconds:
            return table.live()[:0]
        live = table.live()
        waits: Mask = (table.state[live] == State.OPEN) & (table.next[live] > table.sent[live])
        return live[waits]

    def _sessions(self, now: float) -> Ints:
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
        return np.flatnonzero(waits & (stamp - stalled > self._seconds * 1000))
