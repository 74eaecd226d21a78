"""What becomes of an arriving chunk: applied, answered again from the reply window, or refused.

All rules compare columns, so a frame of a thousand sessions costs what one comparison costs; only
duplicates and refusals are looked at one by one. No I/O; time comes from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from statestream import errors
from statestream_server.arrays import Array, Bools, Ints, Positions, counting, same, some, span
from statestream_server.engine import digests
from statestream_server.engine.engine import Engine
from statestream_server.engine.lengths import Lengths
from statestream_server.engine.replies import NONE
from statestream_server.engine.table import Table
from statestream_server.engine.work import Priority, Work
from statestream_server.sessions.saver import Saver
from statestream_server.settings import Limits

_RETRY_SECONDS = 0.1


class Chunks:
    """N chunks as they came, of sessions of one table.

    Attributes:
        table: The table.
        rows: [N] distinct rows.
        handles: [N] what the caller calls them.
        starts: [N] the position at which each starts.
        ends: [N] the position at which each ends.
        acked: [N] the position up to which the caller has the replies.
        lengths: The steps of each.
        inputs: One packed array for every input, [S, ...one step].
        request: Digest of the caller's request id, 0 for none.
    """

    __slots__ = ("acked", "ends", "handles", "inputs", "lengths", "request", "rows", "starts", "table")

    def __init__(
        self,
        table: Table,
        rows: Ints,
        handles: Array,
        starts: Positions,
        acked: Positions,
        lengths: Lengths,
        inputs: Sequence[Array],
        request: int = 0,
        *,
        ends: Positions | None = None,
    ) -> None:
        """Chunks packed in the order of `rows`; `ends` where they are known already."""
        self.table = table
        self.rows = rows
        self.handles = handles
        self.starts = starts
        if ends is None:
            ends = starts + (np.uint64(lengths.each) if lengths.each else lengths.column.astype(np.uint64))
        self.ends = ends
        self.acked = acked
        self.lengths = lengths
        self.inputs = inputs
        self.request = request

    def take(self, places: Ints) -> Chunks:
        """Some of the chunks (ascending), packed anew; these themselves where that is all of them."""
        if len(places) == len(self.rows):
            return self
        cut = span(places)
        return Chunks(
            self.table,
            self.rows[cut],
            self.handles[cut],
            self.starts[cut],
            self.acked[cut],
            self.lengths.take(places),
            self.lengths.pack(self.inputs, places),
            self.request,
            ends=self.ends[cut],
        )


class Receiver(Protocol):
    """Who gets the replies to chunks; called on the loop."""

    def results(
        self, table: Table, handles: Array, rows: Ints, starts: Positions, lengths: Lengths, outputs: Sequence[Array]
    ) -> None:
        """Chunks that were applied: columns, and one packed array for every output."""

    def refused(self, handle: int, start: int, error: errors.StatestreamError) -> None:
        """A chunk that was not applied."""

    def overtaken(self) -> None:
        """Chunks were applied and get no reply: while it waited, the caller's sessions were claimed anew here."""


class Intake:
    """Takes chunks in."""

    def __init__(self, engine: Engine, saver: Saver, limits: Limits, clock: Callable[[], float]) -> None:
        """Chunks go to `engine`, their replies through `saver`; `clock` gives Unix time."""
        self._engine = engine
        self._saver = saver
        self._limits = limits
        self._clock = clock

    def racing(self, table: Table, rows: Ints, starts: Positions) -> Ints:
        """Rows whose chunk repeats one that is still queued: wait until they settled, then accept."""
        late = starts < table.queued[rows]
        if not some(late):
            return rows[:0]
        racing: Ints = rows[late & (starts >= table.position[rows])]
        return racing

    def accept(self, chunks: Chunks, receiver: Receiver) -> None:
        """Queues what is new, answers what is not."""
        table, rows = chunks.table, chunks.rows
        settled = self.acknowledge(table, rows, chunks.acked)
        queued = table.queued[rows]
        if not same(chunks.starts, queued):
            fresh = chunks.starts == queued
            self._answer_old(chunks.take(np.flatnonzero(~fresh)), receiver)
            chunks = chunks.take(np.flatnonzero(fresh))
        if not settled:
            chunks = self._within_window(chunks, receiver)
        chunks = self._within_memory(chunks, receiver)
        if len(chunks.rows):
            # A first one needs no arithmetic, which costs a short column as much as all the rest of this.
            table.unacknowledged[chunks.rows] = 1 if settled else table.unacknowledged[chunks.rows] + 1
            self._submit(chunks, receiver)

    def acknowledge(self, table: Table, rows: Ints, acked: Positions) -> bool:
        """Forgets the replies of `rows` (distinct) up to the positions `acked`, and to what was applied at most.

        Returns:
            Whether all that was accepted of them was applied and is acknowledged.
        """
        position = table.position[rows]
        if not same(acked, position):
            table.replies.acknowledge(rows, np.minimum(acked, position))
            return False
        table.replies.acknowledge_all(rows, position)
        if not same(table.queued[rows], position):
            return False
        table.unacknowledged[rows] = 0
        return True

    def _within_window(self, chunks: Chunks, receiver: Receiver) -> Chunks:
        """The chunks of sessions with few that are not acknowledged; the others are refused."""
        table, rows, limits = chunks.table, chunks.rows, self._limits
        full = table.unacknowledged[rows] >= limits.max_unacknowledged_chunks
        if some(full):
            table.unacknowledged[rows] = table.replies.counts(rows) + table.lane.counts(rows)
            full = table.unacknowledged[rows] >= limits.max_unacknowledged_chunks
            error = errors.WindowFull(
                f"{limits.max_unacknowledged_chunks} chunks of the session are not acknowledged; acknowledge replies"
                " before sending more",
                retry_after=_RETRY_SECONDS,
            )
            chunks = _refuse(chunks, full, receiver, error)
        return chunks

    def _within_memory(self, chunks: Chunks, receiver: Receiver) -> Chunks:
        """The chunks, or none of them where too much waits already."""
        waiting, most = self._engine.queued_bytes, self._limits.max_queued_bytes
        if waiting and waiting + sum(array.nbytes for array in chunks.inputs) > most:
            error = errors.Overloaded(
                f"{waiting} bytes of chunks wait to run; the limit is {most}. Send again later",
                retry_after=_RETRY_SECONDS,
            )
            chunks = _refuse(chunks, np.ones(len(chunks.rows), np.bool_), receiver, error)
        return chunks

    def _submit(self, chunks: Chunks, receiver: Receiver) -> None:
        table, rows = chunks.table, chunks.rows
        table.queued[rows] = chunks.ends
        work = Work(rows, chunks.lengths, chunks.inputs, _Commit(self, chunks, receiver))
        self._engine.submit(table, work, Priority.LIVE)

    def _answer_old(self, chunks: Chunks, receiver: Receiver) -> None:
        """Answers chunks that do not start where their sessions stand: replies that are kept again, or refusals."""
        table = chunks.table
        entries = table.replies.lookup(chunks.rows, chunks.starts)
        same = known = np.flatnonzero(entries != NONE)
        if len(known):
            _, steps, kept = table.replies.columns(entries[known])
            came = chunks.take(known)
            same = known[(steps == came.lengths.column) & (kept == digests.of_chunks(came.lengths, came.inputs))]
        if len(same):
            self._answer(chunks.take(same), table.replies.outputs(entries[same])[1], receiver)
        for place in np.setdiff1d(counting(len(chunks.rows)), same).tolist():
            error = _complaint(chunks, place, kept=bool(entries[place] != NONE))
            receiver.refused(int(chunks.handles[place]), int(chunks.starts[place]), error)

    def commit(self, chunks: Chunks, work: Work, places: Ints, receiver: Receiver) -> None:
        """Position, reply and durability of chunks that ran; their states are committed already."""
        outputs, inputs = work.outputs, chunks.inputs
        if len(places) < len(chunks.rows):
            outputs, chunks = chunks.lengths.pack(outputs, places), chunks.take(places)
            inputs = chunks.inputs
        table, rows = chunks.table, chunks.rows
        table.position[rows] = chunks.ends
        table.used[rows] = self._clock()
        table.dirty[rows] = True
        if chunks.request:
            table.request[rows] = chunks.request
        # Nothing above a position can be acknowledged, so every reply is kept.
        table.replies.append(rows, chunks.starts, chunks.ends, chunks.lengths, outputs, inputs=inputs)
        self._answer(chunks, outputs, receiver)

    def _answer(self, chunks: Chunks, outputs: Sequence[Array], receiver: Receiver) -> None:
        """Lets the replies to applied chunks leave, now or when they may."""
        table, rows = chunks.table, chunks.rows
        if self._saver.lets_go(table, rows):
            receiver.results(table, chunks.handles, rows, chunks.starts, chunks.lengths, outputs)
            return
        claims = table.claims(rows)

        def answer() -> None:
            # While the reply waited, another claim or owner may have taken some of the sessions.
            still = np.flatnonzero(table.are_claimed(rows, claims))
            if len(still):
                ours, packed = chunks.take(still), chunks.lengths.pack(outputs, still)
                receiver.results(table, ours.handles, ours.rows, ours.starts, ours.lengths, packed)
            if len(still) < len(rows):
                _tell_overtaken(table, rows, chunks.handles, chunks.starts, claims, receiver)

        self._saver.release(table, rows, answer)

    def refuse(
        self, chunks: Chunks, work: Work, places: Ints, receiver: Receiver, error: errors.StatestreamError
    ) -> None:
        """Chunks that were not applied; those queued behind them cannot be either."""
        table, rows = chunks.table, work.rows[places]
        table.queued[rows] = table.position[rows]
        for place in places.tolist():
            receiver.refused(int(chunks.handles[place]), int(chunks.starts[place]), error)
        for row in rows.tolist():
            position = int(table.position[row])
            behind = errors.PositionGap(
                f"a chunk before this one was not applied; the session is at {position}, send from there",
                metadata={"expected_position": str(position)},
            )
            self._engine.cancel(table, np.asarray([row]), behind)


class _Commit:
    """The sink of one accepted frame."""

    def __init__(self, intake: Intake, chunks: Chunks, receiver: Receiver) -> None:
        self._intake = intake
        self._chunks = chunks
        self._receiver = receiver

    def completed(self, work: Work, places: Ints) -> None:
        self._intake.commit(self._chunks, work, places, self._receiver)

    def failed(self, work: Work, places: Ints, error: errors.StatestreamError) -> None:
        self._intake.refuse(self._chunks, work, places, self._receiver, error)


def _tell_overtaken(
    table: Table, rows: Ints, handles: Array, starts: Positions, claims: tuple[Ints, Positions], receiver: Receiver
) -> None:
    """Tells of applied chunks whose replies do not leave, because their sessions are not the caller's any more."""
    gone = (table.serial[rows] != claims[0]) | (table.epoch[rows] == 0)
    left = errors.SessionMoved("the session left this server before the reply to the chunk could leave")
    for place in np.flatnonzero(gone).tolist():
        receiver.refused(int(handles[place]), int(starts[place]), left)
    if not (gone | table.are_claimed(rows, claims)).all():
        receiver.overtaken()


def _complaint(chunks: Chunks, place: int, *, kept: bool) -> errors.StatestreamError:
    """What is wrong with a chunk that is neither the next of its session nor one whose reply is kept."""
    row, start, end = int(chunks.rows[place]), int(chunks.starts[place]), int(chunks.ends[place])
    position = int(chunks.table.queued[row])
    if start > position:
        return errors.PositionGap(
            f"the chunk starts at {start}, the session is at {position}; send from {position}",
            metadata={"expected_position": str(position)},
        )
    if not kept and end <= int(chunks.table.acked[row]):
        return errors.AlreadyApplied(
            f"the chunk {start}…{end} was applied and its reply acknowledged (position {position}); go on from there",
            metadata={"position": str(position)},
        )
    return errors.PositionConflict(
        f"another chunk was applied at {start} (the session is at {position}): either two callers write to this"
        " session, or this one changed its inputs",
        metadata={"position": str(position)},
    )


def _refuse(chunks: Chunks, which: Bools, receiver: Receiver, error: errors.StatestreamError) -> Chunks:
    """Refuses some chunks; returns the others."""
    for place in np.flatnonzero(which).tolist():
        receiver.refused(int(chunks.handles[place]), int(chunks.starts[place]), error)
    return chunks.take(np.flatnonzero(~which))
