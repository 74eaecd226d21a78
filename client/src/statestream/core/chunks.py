"""Chunks on their way: submitted, framed, in flight, sent again. What an answer means, `results` decides."""

from __future__ import annotations

from collections import deque

import numpy as np

from statestream.contract.errors import SessionMoved, StatestreamError
from statestream.contract.tensors import Ints, Mask
from statestream.core.blocks import Block, span
from statestream.core.buffer import ReplayBuffer
from statestream.core.forming import alone, cut, gather, rejoined, without
from statestream.core.sinks import DISCARD, Discard
from statestream.core.table import DURABLE_FOREVER, State, Table
from statestream.core.tickets import ANSWER_BYTES, OVERHEAD, Lane, PoolTicket, StepTicket, again
from statestream.core.waiting import Waiting
from statestream.core.windows import Window, Windows

FRAME_BYTES = 1 << 20
"""Frames are cut at about this size."""

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


class Chunks:
    """Everything between a caller's step and its reply, for all sessions of a client."""

    def __init__(self, table: Table, buffer: ReplayBuffer) -> None:
        self.max_steps = 256
        self.window = 64
        self.max_step_bytes = 4 << 20
        self.max_answer = ANSWER_BYTES
        self.max_kept = 64 << 20
        self.suspicious = False
        self.lose_when_full = False
        self.singles = Waiting()
        self.unsent: list[Block] = []
        self.in_flight: dict[int, Block] = {}
        self.windows = Windows()
        self.sessions_in_flight = 0
        self.backlog: deque[StepTicket | PoolTicket] = deque()
        self.holds: dict[int, float] = {}
        self.held_since: dict[int, float] = {}
        self._turn = -1
        self._table = table
        self._buffer = buffer

    # ── submission ─────────────────────────────────────────────────────────────────────────────

    def submit(self, ticket: StepTicket | PoolTicket) -> None:
        """Takes a step; its position is fixed now, or once the replay buffer has room."""
        if ticket.lane.step_bytes > self.max_step_bytes:
            ticket.finish(error=ticket.lane.too_large(self.max_step_bytes))
            return
        if self.backlog or not self._buffer.has_room(ticket.nbytes):
            self.backlog.append(ticket)
            self.admit()
        else:
            self._admit(ticket)

    def admit(self) -> bool:
        """Lets waiting steps in as far as there is room; False where some still wait."""
        buffer, backlog = self._buffer, self.backlog
        while backlog:
            need = backlog[0].nbytes
            if not buffer.has_room(need) and not buffer.make_room(need, lose=self.lose_when_full):
                return False
            self._admit(backlog.popleft())
        return True

    def cancel(self, ticket: StepTicket) -> None:
        """Drops a chunk that is not framed and has nothing behind it; any other stays and runs unheard."""
        ticket.waiter = None
        if ticket.done or ticket.framed:
            return
        if ticket.start < 0:
            if ticket in self.backlog:
                self.backlog.remove(ticket)
            return
        table, handle = self._table, ticket.handle
        if table.next[handle] == ticket.start + ticket.steps:
            self.singles.remove(ticket)
            table.next[handle] = ticket.start
            self._buffer.bytes -= ticket.nbytes

    def _admit(self, ticket: StepTicket | PoolTicket) -> None:
        table = self._table
        if isinstance(ticket, PoolTicket):
            self._admit_pool(ticket)
            return
        handle = ticket.handle
        if table.failures and handle in table.failures:
            ticket.finish(error=table.failure(handle))
            return
        start = table.next.item(handle)
        ticket.start = start
        table.next[handle] = start + ticket.steps
        self._buffer.bytes += ticket.nbytes
        self.singles.add(ticket, behind=start != table.sent.item(handle))

    def _admit_pool(self, ticket: PoolTicket) -> None:
        table, buffer = self._table, self._buffer
        starts = table.next[ticket.handles]
        blocks = cut(ticket, starts, self.max_steps, FRAME_BYTES, self.max_answer)
        out = self._out(ticket)
        if out:
            for row, error in out.items():
                ticket.leave_out(row, error)
            blocks = without(blocks, ticket.handles[list(out)])
        ticket.left = sum(len(block) for block in blocks)
        if not blocks:
            ticket.finish(ticket.value)
            return
        for block in blocks:
            # Rounds of one session come in order, so the last one leaves the end of the sequence.
            table.next[block.at] = block.ends
            buffer.bytes += block.nbytes
            buffer.add(block)
        self.unsent.extend(blocks)

    def _out(self, ticket: PoolTicket) -> dict[int, StatestreamError]:
        """The rows that cannot be stepped: their session failed, or is out of the feed."""
        table, handles = self._table, ticket.handles
        out = ticket.feed.out(handles) if ticket.feed is not None else {}
        if table.failures:
            for row in np.flatnonzero(table.state[handles] == State.FAILED).tolist():
                out[row] = table.failure(handles.item(row))
        return out

    # ── sending ────────────────────────────────────────────────────────────────────────────────

    def fill(self, now: float) -> list[Block]:
        """Blocks that may leave now, marked as sent; their frames are still to be numbered with `sent`."""
        if self.holds:
            self._release_holds(now)
        if self.backlog:
            self.admit()
        if self.suspicious:
            self._choose()
        ready: list[Block] = []
        full = self._fill_blocks(ready) if self.unsent else ()
        for lane, tickets in [*self.singles.lanes.items()]:
            window = self.windows.of(lane)
            if window.full or self._gathering(len(tickets)):
                continue
            if len(tickets) == 1:
                self._fill_single(tickets[0], window, ready)
            else:
                self._fill_singles(lane, tickets, window, ready)
        for window in full:
            window.full = False
        return ready

    @property
    def awaited(self) -> bool:
        """Whether replies are to come that somebody, or a replay, still needs."""
        return any(not block.is_given_up() for block in self.in_flight.values())

    def sent(self, frame: int, block: Block) -> None:
        """Notes under which number a block leaves."""
        block.frame = frame
        self.in_flight[frame] = block

    def _fill_blocks(self, ready: list[Block]) -> list[Window]:
        """Has blocks leave in their order; returns the windows that have no room for the next of theirs."""
        rest: list[Block] = []
        full: list[Window] = []
        for number, block in enumerate(self.unsent):
            window = self.windows.of(block.lane)
            if window.full:
                if len(full) == len(self.windows):
                    rest.extend(self.unsent[number:])
                    break
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
            elif sendable.all():
                self._depart(block, window, ready)
            else:
                self._depart(self._detach(block, sendable), window, ready)
                rest.append(self._detach(block, ~sendable))
        self.unsent = rest
        return full

    def _fitting(self, block: Block, rows: Mask, most: int) -> Mask:
        """The first of some chunks of a block that have room together, one at least: a frame may have no more."""
        lengths = np.broadcast_to(block.lengths, len(block)) * rows
        ends = OVERHEAD + np.cumsum(lengths) * (block.lane.step_bytes + block.lane.answer_bytes)
        fits: Mask = ends <= most
        fits[: int(np.flatnonzero(rows)[0]) + 1] = True
        return fits

    def _fill_singles(self, lane: Lane, tickets: list[StepTicket], window: Window, ready: list[Block]) -> None:
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
            if not tickets or self._gathering(len(tickets)):
                return
        longest = max([ticket.steps for ticket in tickets])
        room = window.most - window.held
        if len(tickets) * (OVERHEAD + longest * (lane.step_bytes + lane.answer_bytes)) > room:
            loads = [OVERHEAD + ticket.steps * (lane.step_bytes + lane.answer_bytes) for ticket in tickets]
            fit = int(np.searchsorted(np.cumsum(loads), room, side="right")) or int(not window.held)
            rest += tickets[fit:]
            tickets, handles, starts = tickets[:fit], handles[:fit], starts[:fit]
            if not tickets:
                return
        self.singles.keep(lane, rest)
        most = FRAME_BYTES // max(1, lane.step_bytes * longest)
        most = max(1, min(most, FRAME_SINGLES, lane.answer_steps(self.max_answer)))
        if len(tickets) >= HALVED_SINGLES and not self.in_flight:
            most = min(most, -(-len(tickets) // 2))
        for low in range(0, len(tickets), most):
            part = slice(low, low + most)
            self._frame(tickets[part], gather(tickets[part], handles[part], starts[part]), window, ready)

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
            self.singles.keep(ticket.lane, [])
            self._frame([ticket], alone(ticket), window, ready)

    def _gathering(self, steps: int) -> bool:
        """Whether so many single steps wait until others join them."""
        return len(self.in_flight) >= BUSY_FRAMES and steps * GATHER < self.sessions_in_flight

    def _frame(self, tickets: list[StepTicket], block: Block, window: Window, ready: list[Block]) -> None:
        for ticket in tickets:
            ticket.framed = True
        # Each was counted as a block of its own so far.
        self._buffer.bytes -= OVERHEAD * (len(tickets) - 1)
        self._buffer.add(block)
        self._depart(block, window, ready)

    def _narrow(self, lane: Lane) -> bool:
        """Whether more than the window of chunks may hold a chunk back: the bytes of kept replies, or a suspicion."""
        return lane.answer_bytes * self.max_steps * self.window > self.max_kept or self.suspicious

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
        block.depart(self._table)
        block.weight = block.load
        window.held += block.load
        self.sessions_in_flight += block.fresh
        self.singles.departed(block)
        ready.append(block)

    def _detach(self, block: Block, mask: Mask) -> Block:
        """Some chunks of a block as a block of their own; in the old one they are dead."""
        rows = np.flatnonzero(mask)
        part = block.take(rows)
        self._keep(part)
        block.settle(rows)
        for row in rows.tolist():
            block.kill(row)
        return part

    def _drop_unsent(self, block: Block, handle: int) -> int:
        """Takes one session's chunk out of an unsent block; its row, or -1."""
        rows = np.flatnonzero(block.handles == handle)
        if not rows.size:
            return -1
        at = next(number for number, other in enumerate(self.unsent) if other is block)
        others = block.handles != handle
        self.unsent[at : at + 1] = [self._detach(block, others)] if others.any() else []
        block.settle(slice(None))
        block.kill(int(rows[0]))
        return int(rows[0])

    def _release_holds(self, now: float) -> None:
        for handle in [handle for handle, until in self.holds.items() if until <= now]:
            del self.holds[handle]
            if self._table.state[handle] == State.HELD:
                self._table.state[handle] = State.OPEN

    # ── setbacks ───────────────────────────────────────────────────────────────────────────────

    def put_back(self, handle: int, start: int) -> None:
        """Makes the chunks of one session from `start` on unsent again; replies still to come are ignored."""
        table = self._table
        for block, row in self._in_flight_rows(handle, start):
            self.requeue(block, row)
            table.stale[handle] += 1
        table.sent[handle] = start

    def requeue(self, block: Block, row: int) -> None:
        """Makes one chunk of a block an unsent block of its own."""
        part = block.take(np.array([row]))
        self._keep(part)
        block.kill(row)
        self.unsent.append(part)

    def _keep(self, part: Block) -> None:
        if not isinstance(part.sink, Discard):
            self._buffer.bytes += part.nbytes
            self._buffer.add(part)

    def unbind(self, handle: int) -> None:
        """The handle is not bound on the server any more: everything not answered is unsent; replays start anew."""
        self.put_back(handle, 0)
        self._table.sent[handle] = self._table.answered[handle]
        for block in [block for block in self.unsent if isinstance(block.sink, Discard)]:
            self._drop_unsent(block, handle)

    def abandon(self, handle: int, start: int, error: StatestreamError) -> bool:
        """Fails every chunk of one session from `start` on, and takes the session back to there.

        Returns:
            Whether a caller hears of it.
        """
        table, heard = self._table, False
        for block, row in self._in_flight_rows(handle, start):
            block.sink.fail(row, again(error))
            block.kill(row)
            self.settled(block)
            table.stale[handle] += 1
            heard |= not isinstance(block.sink, Discard)
        for block in list(self.unsent):
            row = self._drop_unsent(block, handle)
            if row >= 0:
                block.sink.fail(row, again(error))
                heard |= not isinstance(block.sink, Discard)
        for ticket in self.singles.drop(handle):
            self._buffer.bytes -= ticket.nbytes
            ticket.finish(error=again(error))
            heard = True
        queued = [ticket for ticket in self.backlog if isinstance(ticket, StepTicket) and ticket.handle == handle]
        for ticket in queued:
            self.backlog.remove(ticket)
            ticket.finish(error=again(error))
        table.next[handle] = table.sent[handle] = start
        return heard or bool(queued)

    def fail(self, handle: int, error: StatestreamError, *, heard: bool = False) -> None:
        """Makes a session unusable; all that it had under way fails. With `heard` a caller knows of it already."""
        table = self._table
        table.failures[handle] = error
        table.state[handle] = State.FAILED
        safe = bool(table.durable[handle] >= table.answered[handle])
        if not self.abandon(handle, int(table.answered[handle]), error) and not heard:
            table.unheard[handle] = safe
        table.durable[handle] = DURABLE_FOREVER
        self.holds.pop(handle, None)
        self.held_since.pop(handle, None)

    def settled(self, block: Block) -> None:
        """Some chunks of a block are answered, or given up: where that is all, nobody waits for it.

        What was given up is in its window until it is answered: the server has it all the same.
        """
        if not block.frame or (block.left and not block.is_given_up()):
            return
        self.sessions_in_flight -= block.fresh
        block.fresh = 0
        if not block.left and self.in_flight.pop(block.frame, None) is not None:
            self.windows.of(block.lane).held -= block.weight
            block.weight = 0
            block.frame = 0
            # It stays for replay, which concerns no caller: tickets kept with it would be work for Python's collector.
            block.sink = DISCARD

    def unanswered(self, handle: int) -> None:
        """The server has let a session go: no replies come any more to what was sent for it before."""
        table = self._table
        for block in [*self.in_flight.values()]:
            rows = np.flatnonzero(block.still_waiting() & (block.handles == handle))
            if rows.size:
                block.settle(rows)
                self.settled(block)
        table.in_flight[handle] = table.stale[handle] = 0

    def lost(self) -> None:
        """The stream is gone: what was in flight is unsent again."""
        unsent: list[Block] = []
        for block in self.in_flight.values():
            block.frame = block.fresh = block.weight = 0
            if isinstance(block.sink, Discard):
                continue
            if block.dead is not None:
                block.settle(np.flatnonzero(block.dead))
            if block.left == len(block):
                unsent.append(block)
            elif block.left:
                unsent.append(self._detach(block, block.still_waiting()))
        unsent.extend(block for block in self.unsent if not isinstance(block.sink, Discard))
        self.unsent = unsent
        self.in_flight.clear()
        self.windows.lost()
        self.sessions_in_flight = 0
        self.holds.clear()
        self.held_since.clear()
        self._table.in_flight[:] = 0
        self._table.stale[:] = 0

    def replay(self, handles: Ints, positions: Ints) -> None:
        """Opens the way for sessions that are bound again; what the server lost of them is sent again.

        Chunks whose replies the callers have are joined; the others go as they went before, because the server may
        still have replies to them.
        """
        table = self._table
        table.sent[handles] = np.minimum(positions, table.answered[handles])
        behind = np.full(table.size, DURABLE_FOREVER, np.int64)
        behind[handles] = positions
        if (positions < table.answered[handles]).any():
            answered = self._buffer.answered(behind)
            self.unsent = rejoined(answered, self.max_steps, FRAME_BYTES) + self.unsent
        table.state[handles] = State.OPEN
        self._fail_uncovered(handles)

    def _fail_uncovered(self, handles: Ints) -> None:
        """Fails sessions whose position on the server is not where one of our chunks starts."""
        table = self._table
        pending = handles[table.sent[handles] < table.next[handles]]
        if not pending.size:
            return
        covered = np.zeros(table.size, np.bool_)
        for block in self.unsent:
            covered[block.handles[block.starts == table.sent[block.handles]]] = True
        for tickets in self.singles.lanes.values():
            for ticket in tickets:
                if ticket.start == table.sent[ticket.handle]:
                    covered[ticket.handle] = True
        for handle in pending[~covered[pending]].tolist():
            position = int(table.sent[handle])
            self.fail(
                handle,
                SessionMoved(
                    f"session {table.ids[handle]!r} is at position {position}, where no chunk of this client starts: "
                    "another writer stepped it. Open it again to go on from there."
                ),
            )

    def _in_flight_rows(self, handle: int, start: int) -> list[tuple[Block, int]]:
        found = []
        for block in self.in_flight.values():
            rows = np.flatnonzero((block.handles == handle) & (block.starts >= start))
            if rows.size and block.still_waiting()[rows[0]] and not (block.dead is not None and block.dead[rows[0]]):
                found.append((block, int(rows[0])))
        return found
