"""The log: all that was submitted for each session, in the order of its positions, until nothing needs it any more.

Four bounds divide a session's positions: what is answered, what is sent, what is submitted (the table's columns
`answered <= sent <= next`, but while `sent` goes back for a replay), and what is durable. Positions are given at
submission; so whatever stands behind something names the position at which that ends, and no other order is kept. What
may leave when, `departures` decides; what an answer means, `results`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from statestream.contract.errors import SessionMoved, StatestreamError
from statestream.contract.tensors import Ints, Mask
from statestream.core.blocks import Block
from statestream.core.forming import FRAME_BYTES, cut, rejoined, without
from statestream.core.room import ReplayBuffer, Windows
from statestream.core.sinks import DISCARD, Discard
from statestream.core.table import DURABLE_FOREVER, State, Table
from statestream.core.tickets import ANSWER_BYTES, Lane, PoolTicket, StepTicket, again


class Log:
    """Everything between a caller's step and its reply, for all sessions of a client."""

    def __init__(self, table: Table, buffer: ReplayBuffer) -> None:
        self.max_steps = 256
        self.max_step_bytes = 4 << 20
        self.max_answer = ANSWER_BYTES
        self.lanes: dict[Lane, list[StepTicket]] = {}
        """Single chunks that no frame has taken and that start where their session stands, or stood when they came; so
        who fills a frame looks at one of each session, not at all of them. No lane without any."""
        self.behind: dict[int, deque[StepTicket]] = {}
        """The single chunks behind others of their session."""
        self.unsent: list[Block] = []
        """Blocks that wait to leave: a pool's, and what is sent again."""
        self.in_flight: dict[int, Block] = {}
        """Blocks that wait for replies, by their frame."""
        self.windows = Windows()
        self.sessions_in_flight = 0
        self.holds: dict[int, float] = {}
        """Until when the next chunk of a session waits that the server could not take."""
        self.held_since: dict[int, float] = {}
        self.on_rebase: Callable[[Ints, Ints], None] = lambda *_: None
        """Hears of sessions whose positions that are not sent yet have moved, and by how much."""
        self._table = table
        self._buffer = buffer

    # ── submission ─────────────────────────────────────────────────────────────────────────────

    def submit(self, ticket: StepTicket | PoolTicket) -> None:
        """Takes chunks, or marks; their positions are fixed now."""
        if ticket.lane.step_bytes > self.max_step_bytes:
            ticket.finish(error=ticket.lane.too_large(self.max_step_bytes))
            return
        if isinstance(ticket, PoolTicket):
            self._submit_pool(ticket)
            return
        table, handle = self._table, ticket.handle
        if table.failures and handle in table.failures:
            ticket.finish(error=table.failure(handle))
            return
        start = table.next.item(handle)
        ticket.start = start
        table.next[handle] = start + ticket.steps
        if start != table.sent.item(handle):
            self.behind.setdefault(handle, deque()).append(ticket)
        elif (tickets := self.lanes.get(ticket.lane)) is not None:
            tickets.append(ticket)
        else:
            self.lanes[ticket.lane] = [ticket]

    def cancel(self, ticket: StepTicket) -> None:
        """Drops a chunk that is not framed and has nothing behind it; any other stays and runs unheard."""
        ticket.waiter = None
        if ticket.done or ticket.framed:
            return
        table, handle = self._table, ticket.handle
        if table.next[handle] == ticket.start + ticket.steps:
            self._remove(ticket)
            table.next[handle] = ticket.start

    def _submit_pool(self, ticket: PoolTicket) -> None:
        table = self._table
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
        self.unsent.extend(blocks)

    def _out(self, ticket: PoolTicket) -> dict[int, StatestreamError]:
        """The rows that cannot be stepped: their session failed, or is out of the feed."""
        table, handles = self._table, ticket.handles
        out = ticket.feed.out(handles) if ticket.feed is not None else {}
        if table.failures:
            for row in np.flatnonzero(table.state[handles] == State.FAILED).tolist():
                out[row] = table.failure(handles.item(row))
        return out

    # ── on the stream ──────────────────────────────────────────────────────────────────────────

    def keep(self, lane: Lane, tickets: list[StepTicket]) -> None:
        """Those that stay in a lane."""
        if tickets:
            self.lanes[lane] = tickets
        else:
            self.lanes.pop(lane, None)

    def departed(self, block: Block) -> None:
        """Chunks leave: the steps behind them may be next."""
        for handle, end in zip(block.handles.tolist(), block.ends.tolist(), strict=True):
            queue = self.behind.get(handle)
            if queue is not None and queue[0].start == end:
                self.lanes.setdefault(queue[0].lane, []).append(queue.popleft())
                if not queue:
                    del self.behind[handle]

    @property
    def awaited(self) -> bool:
        """Whether replies are to come that somebody, or a replay, still needs."""
        return any(not block.is_given_up() for block in self.in_flight.values())

    def sent(self, frame: int, block: Block) -> None:
        """Notes under which number a block leaves."""
        block.frame = frame
        self.in_flight[frame] = block

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

    # ── setbacks ───────────────────────────────────────────────────────────────────────────────

    def detach(self, block: Block, mask: Mask) -> Block:
        """Some chunks of a block as a block of their own; in the old one they are dead."""
        rows = np.flatnonzero(mask)
        part = block.take(rows)
        if block.kept:
            self._buffer.add(part)
        block.settle(rows)
        block.kill(rows)
        return part

    def _drop_unsent(self, block: Block, handle: int) -> int:
        """Takes one session's chunk out of an unsent block; its row, or -1."""
        rows = np.flatnonzero(block.handles == handle)
        if not rows.size:
            return -1
        at = next(number for number, other in enumerate(self.unsent) if other is block)
        others = block.handles != handle
        self.unsent[at : at + 1] = [self.detach(block, others)] if others.any() else []
        block.settle(slice(None))
        block.kill(int(rows[0]))
        return int(rows[0])

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
        if block.kept:
            self._buffer.add(part)
        block.kill(row)
        self.unsent.append(part)

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
        for ticket in self._drop_singles(handle):
            ticket.finish(error=again(error))
            heard = True
        table.next[handle] = table.sent[handle] = start
        return heard

    def fail(self, handle: int, error: StatestreamError, *, heard: bool = False) -> None:
        """Makes a session unusable; all that it had under way fails. With `heard` a caller knows of it already."""
        table = self._table
        table.failures[handle] = error
        table.state[handle] = State.FAILED
        safe = bool(table.durable[handle] >= table.answered[handle])
        if not self.abandon(handle, int(table.answered[handle]), error) and not heard:
            table.unheard[handle] = safe
        table.durable_then.setdefault(handle, int(table.durable[handle]))
        table.durable[handle] = DURABLE_FOREVER
        self._buffer.look_again()
        self.holds.pop(handle, None)
        self.held_since.pop(handle, None)

    def forget(self, handles: Ints) -> None:
        """The histories of sessions that failed end here: none of their chunks is sent again."""
        self._buffer.forget(handles)

    def rebase(self, handles: Ints, positions: Ints) -> None:
        """Sessions that failed are open again, at these positions: what was submitted since is behind them."""
        table = self._table
        moved = np.zeros(table.size, np.int64)
        moved[handles] = positions - table.answered[handles]
        if moved.any():
            for block in self.unsent:
                block.starts += moved[block.handles]
                block.ends += moved[block.handles]
            for ticket in self._singles(handles):
                ticket.start += moved.item(ticket.handle)
            table.next[handles] += moved[handles]
            self.on_rebase(handles, moved[handles])

    def _remove(self, ticket: StepTicket) -> None:
        """Forgets a step that has none behind it."""
        queue = self.behind.get(ticket.handle)
        if queue is not None:
            queue.pop()
            if not queue:
                del self.behind[ticket.handle]
            return
        tickets = self.lanes[ticket.lane]
        tickets.remove(ticket)
        self.keep(ticket.lane, tickets)

    def _singles(self, handles: Ints) -> list[StepTicket]:
        """The steps of some sessions."""
        wanted = set(handles.tolist())
        first = [ticket for tickets in self.lanes.values() for ticket in tickets if ticket.handle in wanted]
        return first + [ticket for handle in wanted for ticket in self.behind.get(handle, ())]

    def _drop_singles(self, handle: int) -> list[StepTicket]:
        """Forgets all steps of a session, and returns them in order."""
        dropped: list[StepTicket] = []
        for lane, tickets in [*self.lanes.items()]:
            gone = [ticket for ticket in tickets if ticket.handle == handle]
            if gone:
                dropped += gone
                self.keep(lane, [ticket for ticket in tickets if ticket.handle != handle])
        dropped += self.behind.pop(handle, ())
        return dropped

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
                unsent.append(self.detach(block, block.still_waiting()))
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

    def is_replaying(self, handles: Ints) -> bool:
        """Whether one of these sessions is not yet again on its server what its callers were answered."""
        if not self._table.in_flight[handles].any():
            return False
        replays = (block for block in self.in_flight.values() if block.sink is DISCARD)
        return any(np.isin(block.handles[block.still_waiting()], handles).any() for block in replays)

    def _fail_uncovered(self, handles: Ints) -> None:
        """Fails sessions whose position on the server is not where one of our chunks starts."""
        table = self._table
        pending = handles[table.sent[handles] < table.next[handles]]
        if not pending.size:
            return
        covered = np.zeros(table.size, np.bool_)
        for block in self.unsent:
            covered[block.handles[block.starts == table.sent[block.handles]]] = True
        for tickets in self.lanes.values():
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
