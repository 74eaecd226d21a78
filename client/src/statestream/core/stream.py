"""The protocol of one client over successive streams: operations in, frames out, answers in, tickets done.

It does no I/O, starts no threads and reads no clock: the edges call `connected`, `next_request`,
`receive` and `disconnected`, and tell it the time in seconds of a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from statestream.contract.errors import StatestreamError, from_status
from statestream.contract.tensors import Array, Ints, read_handles, read_positions
from statestream.core.closings import Closings
from statestream.core.controls import Controls, Kind
from statestream.core.departures import Departures
from statestream.core.feeds import left_out
from statestream.core.flights import PredictTicket
from statestream.core.log import Log
from statestream.core.moving import Moving
from statestream.core.opens import Opens
from statestream.core.outbox import Outbox
from statestream.core.overdue import Overdue
from statestream.core.partial import Parts
from statestream.core.predictions import Predictions
from statestream.core.results import Results
from statestream.core.room import ReplayBuffer
from statestream.core.sharing import Sharing
from statestream.core.table import Group, State, Table
from statestream.core.tickets import (
    ANSWER_BYTES,
    ControlTicket,
    OpenTicket,
    Outputs,
    PartsTicket,
    PoolTicket,
    StepTicket,
    Ticket,
)
from statestream.v1.inference_pb2 import (
    DURABILITY_MODE_NONE,
    MARK_RESET,
    DurabilityMode,
    OpenMode,
    ResultFrame,
    StreamRequest,
    StreamResponse,
)
from statestream.v1.server_pb2 import Limits


class StreamCore:
    """Every session of one client.

    Args:
        writer: 16 bytes that stand for this client.
        incarnation: Orders its claims; the time in microseconds at connect.
        replay_buffer_bytes: The most bytes of inputs kept for replay.
        keep_seconds: How long inputs are kept after they are durable.
        retry_seconds: How long refusals are met with another try before the caller sees them.
        lose_when_full: With a full buffer, go on and accept that a crash may then lose steps.
    """

    def __init__(
        self,
        writer: bytes,
        incarnation: int,
        *,
        replay_buffer_bytes: int = 64 << 20,
        keep_seconds: float = 5.0,
        retry_seconds: float = 60.0,
        lose_when_full: bool = False,
    ) -> None:
        table = self.table = Table()
        buffer = ReplayBuffer(table, replay_buffer_bytes, keep_seconds, lose_when_full=lose_when_full)
        log = self.log = Log(table, buffer)
        departures = self.departures = Departures(table, log, buffer)
        opens = self.opens = Opens(table, log, departures, writer, incarnation, retry_seconds)
        sharing = self.sharing = Sharing(table, opens)
        controls = self.controls = Controls(table, log, retry_seconds)
        predictions = self.predictions = Predictions(retry_seconds)
        results = self.results = Results(table, buffer, log, departures, opens.reopen, retry_seconds)
        self.buffer = buffer
        opens.on_open = opens.redelivery.on_open = sharing.opened
        opens.refusals.on_refused = sharing.refused
        opens.refusals.on_draining = self._go_away
        controls.on_gone = sharing.settled
        log.on_rebase = controls.rebase
        self.closings = Closings(table, controls)
        self.overdue = Overdue(
            table, buffer, log, departures, opens, sharing, controls, predictions, self.cancel, retry_seconds
        )
        self.retry_seconds = retry_seconds
        self.received_at = float("-inf")
        """When the last answer came, or the stream."""
        self.online = False
        self.going_away = False
        """Nothing more leaves on this stream; the next one goes elsewhere once what is under way is answered."""
        self.moving = Moving(table, controls, self._go_away)
        self._server, self._answers = "", 0
        self._parts = Parts()
        self.outbox = Outbox(table, log, departures, opens, controls, results, predictions)

    # ── operations ─────────────────────────────────────────────────────────────────────────────

    def open(
        self,
        group: Group,
        ids: Sequence[str],
        mode: OpenMode,
        initial: dict[str, Array] | None = None,
        *,
        replies: bool = False,
        upgrade: bool = False,
        anew: bool = False,
    ) -> OpenTicket:
        """Opens sessions, or joins those that are open; the ticket's handles stand for them once it is done.

        With `replies` it has those that were kept; with `upgrade` sessions of other versions move to the group's.
        With `anew` the server has just made them anew: what is open here under their ids is over.

        Raises:
            AlreadyOpen: One is open here and was asked for in a way that would change it; none was opened.
        """
        ticket = self.sharing.open(group, ids, mode, initial or {}, replies=replies, upgrade=upgrade, anew=anew)
        if not len(ids):
            ticket.finish()
        if self.sharing.forsaken:
            self._forsake()
        return ticket

    def step(self, ticket: StepTicket | PartsTicket | PoolTicket, before: Ticket | None = None) -> None:
        """Submits chunks, or marks; those of one session are applied in the order of submission.

        In a stream of steps of one session, none is submitted behind one that failed: `before`. A reset of a session
        that has failed makes it usable again.
        """
        closing = self.table.closing
        if before is not None and before.error is not None:
            ticket.finish(error=left_out(before.error))
        elif isinstance(ticket, PartsTicket):
            for part in ticket.parts:
                self.step(part)
        elif closing.item(ticket.handle) if isinstance(ticket, StepTicket) else closing[ticket.handles].any():
            self.closings.refuse(ticket)
        else:
            if self.table.failures and ticket.lane.mark == MARK_RESET:
                if self.closings.refuses_reset(ticket):
                    return
                self.opens.revive(np.array([ticket.handle]) if isinstance(ticket, StepTicket) else ticket.handles)
            self.log.submit(ticket)

    def predict(self, ticket: PredictTicket) -> None:
        """Asks for a run of a model without memory; those that are asked for at one moment share frames."""
        self.predictions.submit(ticket)

    def cancel(self, ticket: Ticket) -> None:
        """Stops waiting. A chunk, or a mark, that is framed or has others behind it happens anyway.

        Sessions that were asked for, open by now or not, are let go.
        """
        ticket.waiter = None
        if isinstance(ticket, OpenTicket):
            handles = self.sharing.drop(ticket)
            if handles.size:
                self.close(handles, delete=False)
        if isinstance(ticket, PartsTicket):
            for part in reversed(ticket.parts):
                self.log.cancel(part)
        elif isinstance(ticket, StepTicket):
            self.log.cancel(ticket)
        elif isinstance(ticket, PredictTicket):
            self.predictions.cancel(ticket)
        if not self.busy:
            self._answers += 1  # Nobody waits any more, which is as good as an answer.

    def flush(self, handles: Ints) -> ControlTicket:
        """Makes durable what was submitted before."""
        return self.closings.ask(Kind.FLUSH, handles)

    def settle(self, handles: Ints) -> ControlTicket:
        """Waits until everything submitted before is answered."""
        return self.closings.ask(Kind.SETTLE, handles)

    def close(self, handles: Ints, *, delete: bool) -> ControlTicket:
        """Lets sessions go, or deletes them; their handles are free when the ticket is done.

        A session that other callers have goes on for them, unless it is deleted. It follows what was submitted before.
        What is submitted for them from now on fails with Closed.
        """
        return self.closings.ask(Kind.DELETE if delete else Kind.DETACH, handles)

    # ── the stream ─────────────────────────────────────────────────────────────────────────────

    def connected(self, limits: Limits, durability: DurabilityMode, now: float = 0.0, server: str = "") -> None:
        """A new stream is there; every session is opened again before its chunks go on.

        Where nothing is durable, sessions end with the process that has them; `server` is its name.
        """
        self.online = True
        self.going_away = False
        self.moving.end()
        self.received_at = now
        log, departures = self.log, self.departures
        log.max_steps = limits.max_chunk_steps or 256
        departures.window = limits.max_unacknowledged_chunks or 64
        # Names, handles and positions travel beside the data.
        log.max_step_bytes = (limits.max_message_bytes or 4 << 20) - 4096
        departures.max_kept = limits.max_kept_bytes or 64 << 20
        log.max_answer = min(ANSWER_BYTES, limits.max_answer_bytes or 64 << 20, departures.max_kept)
        self.results.ack_after = max(1, min(64, departures.window // 2))
        self.predictions.connected(limits.max_frame_calls, limits.max_window_bytes, log.max_step_bytes)
        self._durability(durability)
        if durability == DURABILITY_MODE_NONE and self._server not in ("", server):
            self.opens.reopened.left_behind()
        self._server = server
        self.opens.connected()

    def disconnected(self, fault: StatestreamError | None = None) -> None:
        """The stream is gone; everything unanswered is put back.

        With a fault of the server, a session that had chunks in flight in several such streams in a row,
        and none of them answered, fails with it: they may be what the server does not survive.
        """
        self.online = False
        self.outbox.frames.clear()
        if fault is not None:
            self.results.blame(fault)
        self.log.lost()
        self.opens.lost(fault)
        self.predictions.lost(fault)
        self._parts.clear()
        self.controls.lost()
        self.table.state[self.table.live()] = State.LOST
        self.controls.offline()

    def next_request(self, now: float) -> StreamRequest | None:
        """The next frame to write, or None while there is none; all that waits now shares as few as possible.

        It has to be written, or serialised, before the next call: a message may be used again.
        """
        outbox = self.outbox
        while outbox.frames or (self.pending and self.online and not self.going_away and outbox.fill(now)):
            request = outbox.take()
            if request is not None:
                return request
        return None

    def receive(self, response: StreamResponse, now: float) -> None:
        """Takes an answer; tickets that it completes are notified from in here. `buffer.advance` comes behind."""
        self.received_at = now
        kind = response.WhichOneof("response")
        frame = response.frame
        if kind not in ("result", "part", "predicted"):
            self.buffer.look_again()
        if kind == "result":
            if frame in self.opens.redelivery.frames:
                self._redelivered(frame, response.result)
            else:
                self.results.result(frame, response.result, now)
        elif kind == "part":
            whole = self._parts.take(frame, response.part)
            if whole is not None and frame in self.opens.redelivery.frames:
                self._redelivered(frame, whole.result, whole.outputs)
            elif whole is not None and frame in self.predictions.in_flight:
                self.predictions.predicted(frame, whole.predicted, now, whole.outputs)
            elif whole is not None:
                self.results.result(frame, whole.result, now, whole.outputs)
        elif kind == "predicted":
            self.predictions.predicted(frame, response.predicted, now)
        elif kind == "opened":
            if response.opened.durability:
                self._durability(response.opened.durability)
            if self.opens.opened(frame, response.opened, now):
                self._answers += 1
        elif kind == "closed":
            self._answers += 1
            self.controls.answered(frame, response.closed.errors, now)
        elif kind == "durable":
            handles = read_handles(response.durable.handles)
            self.results.durable(handles, read_positions(response.durable.durable_positions, len(handles)))
            if frame:
                self._answers += 1
                self.controls.answered(frame, response.durable.errors, now)
        elif kind == "refused":
            error = from_status(response.refused.status)
            for room in (self.results, self.opens, self.predictions, self.controls):
                if room.refuse_frame(frame, error, now):
                    break
        elif kind == "notice":
            for row_error in response.notice.errors:
                self.opens.left(row_error.handle, from_status(row_error.status), now)
        elif kind == "go_away":
            self._go_away()
        elif kind == "move":
            self.moving.asked(read_handles(response.move.handles))
        if self.sharing.forsaken:
            self._forsake()

    @property
    def drained(self) -> bool:
        """The stream is to go elsewhere, and nothing that the server still has to answer is under way."""
        return self.going_away and not (
            self.outbox.frames
            or self.log.awaited
            or self.opens.in_flight
            or self.opens.redelivery.frames
            or self.controls.in_flight
            or self.predictions.in_flight
        )

    @property
    def pending(self) -> bool:
        """Whether `next_request` may have something, now or once answers have come."""
        return bool(
            self.outbox.frames
            or self.log.unsent
            or self.log.lanes
            or self.opens.waiting
            or self.controls.waiting
            or self.controls.failed
            or self.results.acks_due
            or self.predictions.waiting
        )

    @property
    def busy(self) -> bool:
        """Whether a caller waits for something that needs the server."""
        log = self.log
        return bool(
            log.unsent
            or log.lanes
            or log.awaited
            or self.predictions.callers
            or self.controls.waiting
            or self.controls.in_flight
            or self.opens.redelivery.frames
            or any(opening.ticket for opening in [*self.opens.waiting, *self.opens.in_flight.values()])
        )

    @property
    def progress(self) -> int:
        """Grows with every answer that a caller waited for: not with those to replays and opens by the library."""
        return self.results.answers + self.predictions.answers + self._answers

    def due(self) -> float | None:
        """When `next_request` may have something without an answer or an operation before; None for never."""
        if self.going_away:
            return None  # What waits leaves on the next stream: a time that is over would ring for ever.
        waits = self.log.holds or self.opens.waiting or self.departures.starved or self.controls.waiting
        if not (waits or self.predictions.waiting):
            return None
        times = [*self.log.holds.values()]
        found = self.opens.due(), self.controls.due(), self.predictions.due()
        times += [due for due in found if due is not None]
        if self.departures.starved:
            times.append(self.outbox.flush_due)
        return min(times, default=None)

    def check(self, now: float) -> bool:
        """Tells callers, every few seconds, what a stream that stands has not answered for `retry_seconds`.

        Returns:
            Whether the stream is of no use any more: callers waited, and nothing at all came.
        """
        self.opens.reopened.go_on()
        return self.overdue.check(now) and now - self.received_at > self.retry_seconds

    def give_up(self, error: StatestreamError) -> None:
        """Fails everything under way. Sessions with unanswered chunks fail; they can be opened again."""
        self.sharing.give_up(error)
        self.predictions.give_up(error)
        self.opens.give_up(error)
        self.results.give_up(error)
        self.controls.give_up(error)  # Last, because closes that are given up free their sessions.

    # ── inside ─────────────────────────────────────────────────────────────────────────────────

    def _forsake(self) -> None:
        forsaken, self.sharing.forsaken = np.unique(np.array(self.sharing.forsaken, np.int64)), []
        live = (self.table.state[forsaken] >= State.OPEN) & (self.table.state[forsaken] <= State.LOST)
        alone = (self.table.holders[forsaken] == 0) & (self.table.closing[forsaken] == 0)
        self.close(forsaken[live & alone], delete=False)
        self.sharing.settled(forsaken[~(live & alone)])  # Somebody has it by now: who wanted another one is told.

    def _go_away(self) -> None:
        self.going_away = True
        self.predictions.hold_back()

    def _durability(self, mode: DurabilityMode) -> None:
        self.buffer.ephemeral_server = mode == DURABILITY_MODE_NONE
        self.controls.durability = mode

    def _redelivered(self, frame: int, result: ResultFrame, outputs: Outputs | None = None) -> None:
        if self.opens.redelivery.result(frame, result, outputs):
            self._answers += 1
