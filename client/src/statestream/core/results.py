"""What answers to chunks mean: which chunk each row answers, and what becomes of refused ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from statestream.contract import errors
from statestream.contract.errors import StatestreamError, from_status
from statestream.contract.tensors import (
    Ints,
    from_tensors,
    handles_column,
    positions_column,
    read_handles,
    read_positions,
)
from statestream.core.blocks import Block, answer, ranges, span
from statestream.core.departures import SUSPECT, Departures
from statestream.core.log import Log
from statestream.core.room import ReplayBuffer
from statestream.core.sinks import DISCARD, Discard
from statestream.core.table import State, Table
from statestream.core.tickets import Outputs, again
from statestream.v1.inference_pb2 import MARK_RESET, AckFrame, ResultFrame, StreamRequest
from statestream.v1.tensor_pb2 import RowError

TRANSIENT = (errors.Unavailable, errors.Overloaded)
"""Refusals that a later try may not meet."""

REOPEN = (errors.NotOwner, errors.SessionNotFound, errors.PositionGap)
"""Refusals that say that the binding of the handle is not what it was; opening again settles it."""

FATAL = (errors.SessionMoved, errors.StateLost, errors.ModelChanged, errors.ModelNotFound, errors.Unauthenticated)
"""Refusals after which the session cannot be used by this client any more."""

PECULIAR = (errors.PositionConflict, errors.AlreadyApplied, *REOPEN, *TRANSIENT, *FATAL)
"""Refusals of which more follows than that the chunk, and what is behind it, fails."""

FRAME_ACKS = 1 << 18
"""The most sessions in a frame that acknowledges."""

MAX_FAULTS = 4
"""How many streams in a row may end by a fault of the server while chunks of a session are in flight."""

RETRY_SECONDS = 0.1
"""How long a chunk refused for a while is held where the server names no time."""


class Results:
    """Applies result frames to the table, the buffer and the tickets."""

    def __init__(
        self,
        table: Table,
        buffer: ReplayBuffer,
        log: Log,
        departures: Departures,
        reopen: Callable[[int, StatestreamError, float], None],
        retry_seconds: float,
    ) -> None:
        self._table = table
        self._buffer = buffer
        self._log = log
        self._departures = departures
        self._reopen = reopen
        self.retry_seconds = retry_seconds
        self.answers = 0
        """Grows with every answer to a chunk that a caller waits for."""
        self.ack_after = 32
        self.acks_due = False
        self.acks_all = False
        """Everything is acknowledged the next time: the server has no room for more replies."""

    def result(self, frame: int, result: ResultFrame, now: float, outputs: Outputs | None = None) -> None:
        """Resolves the chunks that a result frame answers; rows that nobody waits for are ignored.

        Args:
            frame: The frame that it answers.
            result: Which chunks those are.
            now: The time.
            outputs: Their outputs, where they are not in the frame.
        """
        log = self._log
        block = log.in_flight.get(frame)
        if outputs is None:
            outputs = from_tensors(result.outputs)
        if (
            block is not None
            and block.waiting is None
            and block.dead is None
            and result.handles == block.handle_bytes
            and result.positions == block.position_bytes
        ):
            self._complete(block, outputs, result.durable_positions)
        elif result.handles:
            self._match(block, result, outputs)
        if result.errors:
            self._buffer.look_again()
            self._refused(frame, result.errors, now)

    def received(self, handles: Ints) -> None:
        """The caller has taken the replies that came again on opening: they may be acknowledged."""
        for handle in handles.tolist():
            if self._table.untaken.pop(handle, None) is not None:
                self._table.unacked[handle] = self.ack_after
                self.acks_due = True

    def refuse_frame(self, frame: int, error: StatestreamError, now: float) -> bool:
        """Refuses every chunk of a frame; False where the frame carried none."""
        block = self._log.in_flight.get(frame)
        if block is None:
            return False
        rows = np.flatnonzero(block.still_waiting())
        self._refuse(block, rows, [again(error) for _ in range(len(rows))], now)
        return True

    def blame(self, fault: StatestreamError) -> None:
        """A stream ended by a fault: sessions that had chunks in flight in too many such streams in a row fail."""
        table = self._table
        handles = np.flatnonzero((table.in_flight[: table.size] > 0) & (table.state[: table.size] != State.FAILED))
        table.attempts[handles] += 1
        self._departures.suspicious |= bool((table.attempts[handles] >= SUSPECT).any())
        for handle in handles[table.attempts[handles] > MAX_FAULTS].tolist():
            self._log.fail(
                handle,
                type(fault)(
                    f"{int(table.attempts[handle])} streams ended while steps of session {table.ids[handle]!r} were "
                    f"under way, the last with: {fault.message}. Steps from position {int(table.answered[handle])} on "
                    "may or may not have been applied; open it again and compare its position.",
                    metadata=fault.metadata,
                ),
            )

    def give_up(self, error: StatestreamError) -> None:
        """Fails every session with unanswered chunks, each with what is not known of it."""
        table = self._table
        live = table.live()
        for handle in live[table.next[live] > table.answered[live]].tolist():
            unknown = again(error)
            unknown.message += (
                f" Steps of session {table.ids[handle]!r} from position {int(table.answered[handle])} on may or may "
                "not have been applied; open it again and compare its position."
            )
            self._log.fail(handle, unknown)

    def durable(self, handles: Ints, positions: Ints) -> None:
        """Notes durable positions that the server names unasked."""
        table = self._table
        known = handles < table.size
        known[known] &= table.state[handles[known]] >= State.OPEN
        handles, positions = handles[known], positions[known]
        table.durable[handles] = np.maximum(table.durable[handles], positions)

    def _match(self, first: Block | None, result: ResultFrame, outputs: Outputs) -> None:
        """Finds the chunks that are answered; most likely they are of the block that the frame carried."""
        handles = read_handles(result.handles)
        positions = read_positions(result.positions, len(handles))
        durable = read_positions(result.durable_positions, len(handles))
        run = first.run(handles, positions) if first is not None else None
        if first is not None and run is not None:
            self._deliver(first, run, outputs, durable)
            return
        lengths: Ints | int = result.steps if not result.lengths else read_handles(result.lengths)
        for block, rows, at in self._matching(first, handles, positions):
            self._some(block, rows, at, outputs, lengths, durable)

    def _some(
        self, block: Block, rows: Ints, answers: Ints, outputs: Outputs, lengths: Ints | int, durable: Ints
    ) -> None:
        if block.dead is not None:
            dead = block.dead[rows]
            for row in rows[dead].tolist():
                self._ghost(block, row)
            rows, answers = rows[~dead], answers[~dead]
            if not rows.size:
                return
        if isinstance(lengths, int):
            index = (answers[:, np.newaxis] * lengths + np.arange(lengths)).reshape(-1)
        else:
            index = ranges((np.cumsum(lengths) - lengths)[answers], lengths[answers])
        self._deliver(block, rows, {name: array[index] for name, array in outputs.items()}, durable[answers])

    def _deliver(self, block: Block, rows: slice | Ints, outputs: Outputs, durable: Ints) -> None:
        """Some chunks of a block are answered; outputs and durable positions are in their order."""
        sink, handles = block.sink, block.handles[rows]
        if block.cursors is not None or block.lane.mark:
            self._note(block, rows)
        lengths = block.lengths if isinstance(block.lengths, int) else block.lengths[rows]
        block.settle(rows)
        unacked = answer(self._table, span(handles), block.ends[rows], durable, replay=sink is DISCARD)
        self._answered(block, handles, unacked)
        sink.deliver(rows, outputs, lengths)

    def _complete(self, block: Block, outputs: Outputs, durable: bytes) -> None:
        """The frame answers all of a block, in its order."""
        sink = block.sink
        if block.cursors is not None or block.lane.mark:
            self._note(block, block.every)
        self._answered(block, None, block.arrive(self._table, durable))
        sink.deliver(block.every, outputs, block.lengths)

    def _note(self, block: Block, rows: slice | Ints) -> None:
        """What answered chunks say beside their steps; of replays it is known."""
        if block.sink is DISCARD:
            return
        table = self._table
        if block.lane.mark == MARK_RESET:
            table.origin[block.handles[rows]] = block.ends[rows]
        if block.cursors is not None:
            for row in np.arange(len(block))[rows].tolist():
                if block.cursors[row]:
                    table.cursors[block.handles.item(row)] = block.cursors[row]

    def _answered(self, block: Block, handles: Ints | None, unacked: int) -> None:
        if self._log.held_since:
            for handle in (block.handles if handles is None else handles).tolist():
                self._log.held_since.pop(handle, None)
        if block.sink is not DISCARD:
            self.answers += 1
        if unacked >= self.ack_after:
            self.acks_due = True
        self._log.settled(block)

    def _ghost(self, block: Block, row: int) -> None:
        """The reply to a chunk that was given up: only the count of what is still to come changes."""
        handle = int(block.handles[row])
        block.settle(row)
        self._table.in_flight[handle] -= 1
        self._table.stale[handle] -= 1
        self._log.settled(block)

    def _candidates(self, first: Block | None) -> list[Block]:
        """The blocks in flight, the likeliest one first."""
        others = [block for block in self._log.in_flight.values() if block is not first]
        return others if first is None else [first, *others]

    def _refused(self, frame: int, refusals: Sequence[RowError], now: float) -> None:
        """Finds the chunks that are refused, all of a block together."""
        handles = np.array([refusal.handle for refusal in refusals], np.int64)
        positions = np.array([refusal.position for refusal in refusals], np.int64)
        if len(refusals) > 1 and len(np.unique(handles)) < len(refusals):
            for refusal in refusals:  # Of one session in their order: what is behind a refused chunk is given up by it.
                self._refused(frame, [refusal], now)
            return
        for block, rows, places in self._matching(self._log.in_flight.get(frame), handles, positions):
            self._refuse(block, rows, [from_status(refusals[at].status) for at in places.tolist()], now)

    def _matching(self, first: Block | None, handles: Ints, positions: Ints) -> Iterator[tuple[Block, Ints, Ints]]:
        """The blocks that an answer is for: each with its rows, and their places in the answer."""
        table = self._table
        left = np.flatnonzero(handles < table.size)
        for block in self._candidates(first):
            if not left.size:
                return
            rows = block.find(handles[left], positions[left], table.scratch)
            hit = rows >= 0
            if hit.any():
                yield block, rows[hit], left[hit]
                left = left[~hit]

    def _refuse(self, block: Block, rows: Ints, refusals: Sequence[StatestreamError], now: float) -> None:
        """Refuses some chunks of a block: together those of which only their callers hear."""
        discard, plain = isinstance(block.sink, Discard), list[int]()
        for at, (row, error) in enumerate(zip(rows.tolist(), refusals, strict=True)):
            if discard or isinstance(error, PECULIAR) or (block.dead is not None and block.dead[row]):
                self._refuse_one(block, row, error, now)
            else:
                plain.append(at)
        if plain:
            self._give_up(block, rows[plain], [refusals[at] for at in plain])

    def _give_up(self, block: Block, rows: Ints, refusals: Sequence[StatestreamError]) -> None:
        """Tells callers of refused chunks; their sessions go back to where these started."""
        table, log, sink = self._table, self._log, block.sink
        handles, starts = block.handles[rows], block.starts[rows]
        block.settle(rows)
        block.kill(rows)
        table.in_flight[handles] -= 1
        followed = table.next[handles] > block.ends[rows]
        last = handles[~followed]
        table.next[last] = table.sent[last] = starts[~followed]
        for row, error in zip(rows.tolist(), refusals, strict=True):
            sink.fail(row, error)
        for at in np.flatnonzero(followed).tolist():
            log.abandon(handles.item(at), starts.item(at), behind(refusals[at], starts.item(at)))
        for handle in handles.tolist() if log.held_since else ():
            log.held_since.pop(handle, None)
        log.settled(block)

    def _refuse_one(self, block: Block, row: int, error: StatestreamError, now: float) -> None:
        if block.dead is not None and block.dead[row]:
            self._ghost(block, row)
            return
        table, log = self._table, self._log
        handle, start = int(block.handles[row]), int(block.starts[row])
        discard = isinstance(block.sink, Discard)
        if isinstance(error, errors.PositionConflict) or (isinstance(error, errors.AlreadyApplied) and not discard):
            # What this client sent it sends again as it was, and it acknowledges what it has: somebody else stepped it.
            self._take_out(block, row)
            block.kill(row)
            moved = errors.SessionMoved(
                f"another writer stepped session {table.ids[handle]!r}: {error.message}. Open it again to go on from "
                "where it stands",
                metadata=error.metadata,
            )
            block.sink.fail(row, moved)
            log.fail(handle, moved, heard=not discard)
        elif isinstance(error, errors.AlreadyApplied):
            # Its reply was acknowledged, so this is a replay that was not needed.
            table.answered[handle] = max(int(table.answered[handle]), int(block.ends[row]))
            self._take_out(block, row)
            block.sink.fail(row, error)
        elif isinstance(error, REOPEN):
            self._take_out(block, row)
            log.requeue(block, row)
            self._reopen(handle, error, now)
        elif isinstance(error, TRANSIENT) and now - log.held_since.setdefault(handle, now) < self.retry_seconds:
            self._take_out(block, row)
            log.requeue(block, row)
            log.put_back(handle, start)
            if isinstance(error, errors.WindowFull):
                self.acks_due = self.acks_all = True
            log.holds[handle] = now + (RETRY_SECONDS if error.retry_after is None else error.retry_after)
            table.state[handle] = State.HELD
        elif isinstance(error, FATAL) or discard:
            self._take_out(block, row)
            block.kill(row)
            block.sink.fail(row, error)
            log.fail(handle, error, heard=not discard)
        else:
            self._give_up(block, np.array([row]), [error])
            return
        self._log.settled(block)

    def _take_out(self, block: Block, row: int) -> None:
        block.settle(row)
        self._table.in_flight[block.handles[row]] -= 1


def behind(error: StatestreamError, start: int) -> StatestreamError:
    """The error of chunks that were submitted behind a refused one."""
    return type(error)(
        f"the chunk at position {start}, before this one, was refused, so this one was not applied: {error.message}",
        metadata=error.metadata,
        retry_after=error.retry_after,
    )


def acknowledge(table: Table, handles: Ints, number: Callable[[], int]) -> list[StreamRequest]:
    """Frames that acknowledge replies without a chunk; `number` gives their numbers."""
    answered = table.acknowledgeable(handles)
    table.acked[handles] = answered
    table.unacked[handles] = 0
    cuts = (slice(low, low + FRAME_ACKS) for low in range(0, len(handles), FRAME_ACKS))
    return [
        StreamRequest(
            frame=number(),
            ack=AckFrame(handles=handles_column(handles[cut]), acked_positions=positions_column(answered[cut])),
        )
        for cut in cuts
    ]
