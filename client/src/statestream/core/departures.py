"""Departures: which chunks of the log leave now, and how many share a frame."""

from __future__ import annotations

import numpy as np

from statestream.contract.tensors import Ints, Mask
from statestream.core.blocks import Block, Single, span
from statestream.core.forming import FRAME_BYTES, gather
from statestream.core.log import Log
from statestream.core.room import ReplayBuffer, Window
from statestream.core.sinks import DISCARD
from statestream.core.table import State, Table
from statestream.core.tickets import OVERHEAD, Lane, StepTicket

FRAME_SINGLES = 512
"""The most single steps in a frame."""

HALVED_SINGLES = 256
"""From so many single steps on, with nothing in flight, they leave as two frames: in one, client and server would wait
for each other in turn; in two, the client takes one answer apart while the server runs the other."""

SUSPECT = 2
"""A session whose chunks were under way in so many streams in a row that ended by a fault is tried by itself."""

BUSY_FRAMES = 2
GATHER = 4
"""With `BUSY_FRAMES` unanswered, single steps wait until they are one in `GATHER` of the sessions whose steps are in
flight: answers are coming, and what they wake joins the frame. So the frames of a crowd grow in place of their number;
a step of few sessions, or behind long chunks, never waits."""

_OPEN = int(State.OPEN)


class Departures:
    """Chooses what leaves: in order, within the windows, and as far as the replay buffer has room to keep it."""

    def __init__(self, table: Table, log: Log, buffer: ReplayBuffer) -> None:
        self.window = 64
        """The most unanswered chunks of a session."""
        self.max_kept = 64 << 20
        """The most bytes of unacknowledged replies of a session."""
        self.suspicious = False
        """Sessions whose chunks may be what the server does not survive are tried one at a time."""
        self.starved = False
        """Something that could leave waits for room in the replay buffer."""
        self.left = 0
        """How many blocks have left."""
        self._turn = -1
        self._table = table
        self._log = log
        self._buffer = buffer

    def fill(self, now: float) -> list[Block]:
        """Blocks that may leave now, marked as sent; their frames are still to be numbered with `Log.sent`."""
        log = self._log
        if log.holds:
            self._release_holds(now)
        if self.suspicious:
            self._choose()
        self.starved = False
        ready: list[Block] = []
        full = self._fill_blocks(ready) if log.unsent else ()
        for lane, tickets in [*log.lanes.items()]:
            window = log.windows.of(lane)
            if window.full or self.starved or (len(log.in_flight) >= BUSY_FRAMES and self._gathering(len(tickets))):
                continue
            if len(tickets) == 1:
                self._fill_single(tickets[0], window, ready)
            else:
                self._fill_singles(lane, tickets, window, ready)
        for window in full:
            window.full = False
        return ready

    def look_again(self) -> None:
        """Has the next turn look for room in the replay buffer, whatever is known of it."""
        self._buffer.look_again()

    def _fill_blocks(self, ready: list[Block]) -> list[Window]:
        """Has blocks leave in their order; returns the windows that have no room for the next of theirs."""
        log = self._log
        rest: list[Block] = []
        full: list[Window] = []
        for number, block in enumerate(log.unsent):
            window = log.windows.of(block.lane)
            if window.full:
                if len(full) == len(log.windows):
                    rest.extend(log.unsent[number:])
                    break
                rest.append(block)
                continue
            fresh = not block.kept and block.sink is not DISCARD
            if fresh and self.starved:
                rest.append(block)
                continue
            sendable = self._sendable(block.at, block.starts, block.ends, block.lane)
            if not sendable.any():
                rest.append(block)
                continue
            if not window.held and block.load > window.most and len(block) > 1:
                sendable &= self._fitting(block, sendable, window.most)
            if not window.has_room(block.load):
                window.full = True
                full.append(window)
                rest.append(block)
            elif fresh and not self._buffer.admits(block.nbytes):
                self.starved = True
                rest.append(block)
            elif sendable.all():
                self._depart(block, window, ready)
            else:
                self._depart(log.detach(block, sendable), window, ready)
                rest.append(log.detach(block, ~sendable))
        log.unsent = rest
        return full

    def _fitting(self, block: Block, rows: Mask, most: int) -> Mask:
        """The first of some chunks of a block that have room together, one at least: a frame may have no more."""
        lengths = np.broadcast_to(block.lengths, len(block)) * rows
        ends = OVERHEAD + np.cumsum(lengths) * (block.lane.step_bytes + block.lane.answer_bytes)
        fits: Mask = ends <= most
        fits[: int(np.flatnonzero(rows)[0]) + 1] = True
        return fits

    def _fill_singles(self, lane: Lane, tickets: list[StepTicket], window: Window, ready: list[Block]) -> None:
        log = self._log
        handles = np.array([ticket.handle for ticket in tickets], np.int64)
        starts = np.array([ticket.start for ticket in tickets], np.int64)
        # Where the ends do not matter, they need not be there: this happens at every step of a crowd.
        narrow = self._narrow(lane)
        ends = starts + np.array([ticket.steps for ticket in tickets], np.int64) if narrow else starts
        ok = self._sendable(span(handles), starts, ends, lane)
        rest: list[StepTicket] = []
        if not ok.all():
            flags = ok.tolist()
            rest = [ticket for ticket, chosen in zip(tickets, flags, strict=True) if not chosen]
            tickets = [ticket for ticket, chosen in zip(tickets, flags, strict=True) if chosen]
            handles, starts = handles[ok], starts[ok]
            if not tickets or (len(log.in_flight) >= BUSY_FRAMES and self._gathering(len(tickets))):
                return
        longest = max([ticket.steps for ticket in tickets])
        fit = self._fit(tickets, longest, window)
        if fit < len(tickets):
            rest += tickets[fit:]
            tickets, handles, starts = tickets[:fit], handles[:fit], starts[:fit]
            if not tickets:
                return
        log.keep(lane, rest)
        most = FRAME_BYTES // max(1, lane.step_bytes * longest)
        most = max(1, min(most, FRAME_SINGLES, lane.answer_steps(log.max_answer)))
        if len(tickets) >= HALVED_SINGLES and not log.in_flight:
            most = min(most, -(-len(tickets) // 2))
        for low in range(0, len(tickets), most):
            part = slice(low, low + most)
            self._depart(gather(tickets[part], handles[part], starts[part]), window, ready)

    def _fit(self, tickets: list[StepTicket], longest: int, window: Window) -> int:
        """How many of some single chunks have room, in the window and in the buffer."""
        lane, count = tickets[0].lane, len(tickets)
        room = window.most - window.held
        if count * (OVERHEAD + longest * (lane.step_bytes + lane.answer_bytes)) > room:
            loads = [OVERHEAD + ticket.steps * (lane.step_bytes + lane.answer_bytes) for ticket in tickets]
            count = int(np.searchsorted(np.cumsum(loads), room, side="right")) or int(not window.held)
        if not self._buffer.admits(count * (OVERHEAD + longest * lane.step_bytes)):
            sizes = np.cumsum([ticket.nbytes for ticket in tickets[:count]])
            fit = int(np.searchsorted(sizes, self._buffer.limit - self._buffer.bytes, side="right"))
            fit = fit or int(not self._buffer.bytes)
            self.starved = fit < count
            count = fit
        return count

    def _fill_single(self, ticket: StepTicket, window: Window, ready: list[Block]) -> None:
        table, handle = self._table, ticket.handle
        if (
            table.sent.item(handle) == ticket.start
            and table.state.item(handle) == _OPEN
            and table.in_flight.item(handle) < self.window
            and table.stale.item(handle) == 0
            and (not self._narrow(ticket.lane) or self._sendable_alone(ticket))
            and (not window.held or window.has_room(ticket.nbytes + ticket.steps * ticket.lane.answer_bytes))
        ):
            if not self._buffer.admits(ticket.nbytes):
                self.starved = True
                return
            del self._log.lanes[ticket.lane]
            self._depart(Single(ticket), window, ready)

    def _gathering(self, steps: int) -> bool:
        """Whether so many single steps wait until others join them."""
        return steps * GATHER < self._log.sessions_in_flight

    def _narrow(self, lane: Lane) -> bool:
        """Whether more than the window of chunks may hold a chunk back: the bytes of kept replies, or a suspicion."""
        return lane.answer_bytes * self._log.max_steps * self.window > self.max_kept or self.suspicious

    def _sendable_alone(self, ticket: StepTicket) -> bool:
        start = np.array([ticket.start])
        return bool(self._sendable(np.array([ticket.handle]), start, start + ticket.steps, ticket.lane)[0])

    def _sendable(self, at: slice | Ints, starts: Ints, ends: Ints, lane: Lane) -> Mask:
        """Which chunks may leave now: in order, within their windows, and by themselves where they are suspected."""
        table = self._table
        ok: Mask = table.sent[at] == starts
        ok &= table.state[at] == _OPEN
        ok &= table.in_flight[at] < self.window
        ok &= table.stale[at] == 0
        if self._narrow(lane):
            handles = np.arange(at.start, at.stop) if isinstance(at, slice) else at
            # With the chunk goes word of all that was answered: what is kept then is what lies between.
            kept = (ends - table.acknowledgeable(handles)) * lane.answer_bytes
            ok &= (kept <= self.max_kept) | (table.in_flight[at] == 0)
            if self.suspicious:
                ok &= (table.attempts[at] < SUSPECT) | (handles == self._turn)
        return ok

    def _choose(self) -> None:
        """Whose turn it is among the sessions whose chunks were under way when streams ended by a fault.

        Only one of them has chunks under way at a time, so that the fault of one is not laid upon the others. An answer
        clears it.
        """
        table = self._table
        live = table.live()
        suspects = live[(table.attempts[live] >= SUSPECT) & (table.next[live] > table.answered[live])]
        self.suspicious = bool(suspects.size)
        if self._turn >= 0 and table.in_flight[self._turn] > 0:
            return
        ready = suspects[table.state[suspects] == State.OPEN]
        if ready.size:
            self._turn = ready.item(np.searchsorted(ready, self._turn, side="right") % ready.size)

    def _depart(self, block: Block, window: Window, ready: list[Block]) -> None:
        if not block.kept and block.sink is not DISCARD:
            self._buffer.add(block)
        block.depart(self._table)
        block.weight = block.load
        window.held += block.load
        self._log.sessions_in_flight += block.fresh
        if self._log.behind:
            self._log.departed(block)
        self.left += 1
        ready.append(block)

    def _release_holds(self, now: float) -> None:
        holds = self._log.holds
        for handle in [handle for handle, until in holds.items() if until <= now]:
            del holds[handle]
            if self._table.state[handle] == State.HELD:
                self._table.state[handle] = State.OPEN
