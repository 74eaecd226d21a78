"""The intake: what becomes of a chunk that comes (applied, answered again, or refused), and how it is committed.

All rules compare columns, so a frame of a thousand sessions costs what one comparison costs; only duplicates and
refusals are looked at one by one. A single step that comes while nothing else waits is compared by itself, and where
it is as usual runs at once. No I/O; time comes from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array, Ints, Positions, counting, every, same, some
from statestream_server.engine.alone import Alone
from statestream_server.engine.digests import OLDER
from statestream_server.engine.engine import Engine
from statestream_server.engine.lengths import alike
from statestream_server.engine.marks import RESET, Marks
from statestream_server.engine.replies import NONE
from statestream_server.engine.table import Table
from statestream_server.engine.work import Priority
from statestream_server.sessions.admission.bounds import Bounds
from statestream_server.sessions.admission.chunks import Chunks
from statestream_server.sessions.admission.complaints import complain, tell_overtaken
from statestream_server.sessions.admission.senders import LARGE, Senders, Single
from statestream_server.sessions.admission.taps import Taps
from statestream_server.sessions.releases import Release


class Gate(Protocol):
    """Who says when replies may leave: the lease, or in mode `sync` the checkpointer."""

    def lets_go(self, table: Table, rows: Ints) -> bool:
        """Whether everything applied to `rows` so far may be answered at once; else see `release`."""

    def release(self, table: Table, rows: Ints, release: Release) -> None:
        """Calls `release`, in order, once everything applied to `rows` so far may be answered."""


class Intake:
    """Takes chunks in, and hears of the engine what became of them."""

    def __init__(self, engine: Engine, alone: Alone, gate: Gate, bounds: Bounds, clock: Callable[[], float]) -> None:
        """Chunks go to `engine`, or run `alone`, their replies through `gate`; `clock` never goes back, in seconds."""
        self._engine = engine
        self._alone = alone
        self._gate = gate
        self._bounds = bounds
        self._clock = clock
        self.taps = Taps(clock)
        """Who watches sessions."""

    def racing(self, table: Table, rows: Ints, starts: Positions) -> Ints:
        """Rows whose chunk repeats one that is still queued: wait until they settled, then accept."""
        late = starts < table.queued[rows]
        if not some(late):
            return rows[:0]
        racing: Ints = rows[late & (starts >= table.position[rows])]
        return racing

    def accept(self, chunks: Chunks) -> None:
        """Queues what is new, answers what is not."""
        table, bounds = chunks.table, self._bounds
        settled = self.acknowledge(table, chunks.rows, chunks.acked)
        queued = table.queued[chunks.rows]
        if not same(chunks.starts, queued):
            fresh = chunks.starts == queued
            self._answer_old(chunks.take(np.flatnonzero(~fresh)))
            chunks = chunks.take(np.flatnonzero(fresh))
        if table.output_bytes * chunks.lengths.total > bounds.most_answer:
            chunks = bounds.answer(chunks)
        if not settled:
            chunks = bounds.session(chunks)
        if table.replies.nbytes > bounds.most_replies:
            chunks = bounds.share(chunks)
        rows = chunks.rows
        if len(rows):
            # A first one needs no arithmetic, which costs a short column as much as all the rest of this.
            table.unacknowledged[rows] = 1 if settled else table.unacknowledged[rows] + 1
            table.queued[rows] = chunks.ends
            self._engine.submit(table, chunks, Priority.LIVE, self)

    def step(self, table: Table, single: Single) -> bool:
        """Runs a single step, and answers it, where nothing waits for the engine and all is as usual; whether it did.

        As usual is: one step, from where its session stands, by whoever has it, with all replies acknowledged. What is
        not is left as it was, for `accept`.
        """
        if single.steps != 1 or not self._alone.takes(table) or self.taps.watched:
            return False
        number, bounds = single.row, self._bounds
        start, row = single.start, np.array([number])
        if (
            not start == single.acked == table.position.item(number) == table.queued.item(number)
            or table.binding.item(number) != single.binding
            or table.output_bytes > min(LARGE, bounds.most_answer)
            or table.replies.nbytes > bounds.most_replies
        ):
            return False
        inputs = [
            np.frombuffer(data, dtype).reshape(1, 1, *shape)
            for data, (dtype, shape) in zip(single.inputs, table.inputs, strict=True)
        ]

        def commit(outputs: Sequence[Array]) -> None:
            packed, end = [array[0] for array in outputs], start + 1
            table.replies.acked[number] = start
            table.unacknowledged[number] = 1
            table.queued[number] = table.position[number] = end
            table.used[number] = self._clock()
            table.dirty[number] = True
            if table.named:
                table.request[number] &= OLDER
            starts, ends = np.array([start], np.uint64), np.array([end], np.uint64)
            table.replies.append(row, starts, ends, alike(1, 1), packed, inputs=[array[0] for array in inputs])
            if self._gate.lets_go(table, row):
                single.result(table.durable.item(number), [array.tobytes() for array in packed], alone=True)
                return
            chunks = Chunks(
                row, alike(1, 1), (), table=table, handles=counting(1), starts=starts, ends=ends, acked=starts,
                receiver=Senders((single,)),
            )  # fmt: skip
            self._release(chunks, lambda _: chunks.receiver.results(chunks, packed))

        return self._alone.step(table, row, inputs, commit)

    def acknowledge(self, table: Table, rows: Ints, acked: Positions) -> bool:
        """Forgets the replies of `rows` (distinct) up to the positions `acked`, and to what was applied at most.

        Returns:
            Whether all that was accepted of them was applied and is acknowledged.
        """
        position = table.position[rows]
        if not same(acked, position):
            table.replies.acknowledge(rows, np.minimum(acked, position))
            return False
        table.replies.acked[rows] = position
        if not same(table.queued[rows], position):
            return False
        table.unacknowledged[rows] = 0
        return True

    def _answer_old(self, chunks: Chunks) -> None:
        """Answers chunks that do not start where their sessions stand: replies that are kept again, or refusals."""
        table = chunks.table
        entries = table.replies.lookup(chunks.rows, chunks.starts)
        same = known = np.flatnonzero(entries != NONE)
        if len(known):
            _, steps, kept = table.replies.columns(entries[known])
            came = chunks.take(known)
            same = known[(steps == came.lengths.column) & (kept == came.digests())]
        if len(same):
            table.counts.repeated += len(same)
            self._repeat(chunks.bare(same), entries[same])
        rest = np.setdiff1d(counting(len(chunks.rows)), same)
        if len(rest):
            complain(chunks, rest, kept=entries[rest] != NONE)

    def completed(self, work: Chunks, places: Ints) -> None:
        """Moves position and reply of chunks that ran; their states are committed already, and saved later."""
        chunks, outputs = work, work.outputs
        if len(places) < len(work.rows):
            chunks, outputs = work.take(places), work.lengths.pack(outputs, places)
        table, rows = chunks.table, chunks.rows
        table.position[rows] = chunks.ends
        table.used[rows] = self._clock()
        table.dirty[rows] = True
        if chunks.requests is not None:
            named = chunks.requests != 0
            table.request[rows[named]], table.named = chunks.requests[named], True
            unnamed = rows[~named]
        else:
            unnamed = rows
        if table.named:
            table.request[unnamed] &= OLDER
        # Nothing above a position can be acknowledged, so every reply is kept.
        if chunks.marks is None:
            table.replies.append(rows, chunks.starts, chunks.ends, chunks.lengths, outputs, inputs=chunks.inputs)
        else:
            outputs = self._commit_marks(chunks, chunks.marks, outputs)
        if self.taps.watched:
            self.taps.saw(chunks, outputs)
        if self._gate.lets_go(table, rows):
            chunks.receiver.results(chunks, outputs)
        else:
            self._release(chunks, lambda at: chunks.receiver.results(chunks.bare(at), chunks.lengths.pack(outputs, at)))

    def _commit_marks(self, chunks: Chunks, marks: Marks, outputs: Sequence[Array]) -> Sequence[Array]:
        """Keeps the replies of chunks with marks or cursors among them; their outputs."""
        table, rows = chunks.table, chunks.rows
        outputs = outputs if chunks.lengths.total else table.no_outputs
        table.replies.append(rows, chunks.starts, chunks.ends, chunks.lengths, outputs, digests=chunks.digests())
        resets = marks.kinds == RESET
        table.origin[rows[resets]] = chunks.ends[resets]
        if marks.cursors:
            table.cursors.update(marks.cursors_of(rows))
        return outputs

    def _repeat(self, chunks: Chunks, entries: Ints) -> None:
        """Lets replies that are kept leave again, now or when they may."""
        if self._gate.lets_go(chunks.table, chunks.rows):
            chunks.receiver.repeated(chunks, entries)
        else:
            self._release(chunks, lambda still: self._again(chunks.bare(still), entries[still]))

    def _again(self, chunks: Chunks, entries: Ints) -> None:
        """Lets replies that waited leave again, as far as they are kept still.

        Meanwhile other calls may have acknowledged them; where one was, another session's may be by now.
        """
        there = chunks.table.replies.lookup(chunks.rows, chunks.starts) == entries
        if every(there):
            chunks.receiver.repeated(chunks, entries)
            return
        still, gone = np.flatnonzero(there), np.flatnonzero(~there)
        if len(still):
            chunks.receiver.repeated(chunks.bare(still), entries[still])
        complain(chunks, gone, kept=there[gone])

    def _release(self, chunks: Chunks, deliver: Callable[[Ints], None]) -> None:
        """Delivers the replies at some places once they may leave, as far as their sessions are still the caller's."""
        table, rows = chunks.table, chunks.rows
        claims = table.claims(rows)

        def answer(places: Ints, error: errors.StatestreamError | None) -> None:
            # While replies waited, another claim or owner may have taken some of the sessions.
            ours = table.are_claimed(rows[places], (claims[0][places], claims[1][places]))
            still, left = places[ours], places[~ours]
            if len(still) and error is not None:
                chunks.receiver.refused(chunks.bare(still), error)
            elif len(still):
                deliver(still)
            if len(left):
                tell_overtaken(chunks.bare(left), (claims[0][left], claims[1][left]))

        self._gate.release(table, rows, answer)

    def failed(self, work: Chunks, places: Ints, error: errors.StatestreamError) -> None:
        """Answers chunks that were not applied."""
        table, rows = work.table, work.rows[places]
        table.queued[rows] = table.position[rows]
        table.counts.refuse(error.reason, len(places))
        work.receiver.refused(work.bare(places), error)

    def behind(self, work: Chunks, places: Ints) -> None:
        """Answers chunks that were queued behind one that was not applied: they cannot be either."""
        positions = work.table.position[work.rows[places]]
        work.table.counts.refuse(errors.PositionGap.reason, len(places))

        def gap(place: int) -> errors.StatestreamError:
            position = int(positions[place])
            return errors.PositionGap(
                f"a chunk before this one was not applied; the session is at {position}, send from there",
                metadata={"expected_position": str(position)},
            )

        work.receiver.refused(work.bare(places), gap)
