"""What becomes of an arriving chunk: applied, answered again from the reply window, or refused; and its commit.

All rules compare columns, so a frame of a thousand sessions costs what one comparison costs; only
duplicates and refusals are looked at one by one. No I/O; time comes from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array, Bools, Ints, Positions, counting, same, some, span
from statestream_server.engine import digests
from statestream_server.engine.engine import Engine
from statestream_server.engine.lengths import Lengths
from statestream_server.engine.marks import RESET, Marks
from statestream_server.engine.marks import ends as ends_of
from statestream_server.engine.replies import NONE
from statestream_server.engine.table import UNBOUND, Table
from statestream_server.engine.work import Priority, Work
from statestream_server.sessions.checkpointer import Checkpointer
from statestream_server.settings import Limits

_RETRY_SECONDS = 0.1
_LOOK_SECONDS = 0.05
"""How long it holds which streams have too much: less than those wait who are refused for it."""
_NOBODY: Ints = np.empty(0, np.int64)


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
        marks: What of them are marks, and the cursors that come with them; None where there is nothing of it.
    """

    __slots__ = ("acked", "ends", "handles", "inputs", "lengths", "marks", "request", "rows", "starts", "table")

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
        marks: Marks | None = None,
    ) -> None:
        """Chunks packed in the order of `rows`; `ends` where they are known already."""
        self.table = table
        self.rows = rows
        self.handles = handles
        self.starts = starts
        self.ends = ends if ends is not None else ends_of(starts, lengths)
        self.marks = marks
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
            marks=self.marks.take(places) if self.marks is not None else None,
        )

    def bare(self, places: Ints) -> Chunks:
        """Some of the chunks (ascending) without their inputs; these themselves where that is all of them."""
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
            (),
            self.request,
            ends=self.ends[cut],
            marks=self.marks.take(places) if self.marks is not None else None,
        )

    def digests(self) -> Positions:
        """[N] what tells them from other chunks at the same positions."""
        if self.marks is not None:
            return self.marks.digests(self.lengths, self.inputs)
        return digests.of_chunks(self.lengths, self.inputs)


Refusal = errors.StatestreamError | Callable[[int], errors.StatestreamError]
"""Why chunks were not applied: one error for all, or what makes the error of each by its place when it is written.

It is written when its turn has come and not before, so that a frame of very many chunks that are refused holds the loop
up no longer than one of few.
"""


def error_at(refusal: Refusal, place: int) -> errors.StatestreamError:
    """Why the chunk at a place was not applied."""
    return refusal if isinstance(refusal, errors.StatestreamError) else refusal(place)


class Receiver(Protocol):
    """Who gets the replies to chunks; called on the loop. Each chunk ends once, by one of these."""

    def results(self, chunks: Chunks, outputs: Sequence[Array]) -> None:
        """Chunks that were applied, and one packed array for every output."""

    def repeated(self, chunks: Chunks, entries: Ints) -> None:
        """Chunks that had been applied: [n] where their replies are kept, to be taken from there as they are sent."""

    def refused(self, chunks: Chunks, refusal: Refusal) -> None:
        """Chunks that were not applied."""

    def overtaken(self, chunks: Chunks) -> None:
        """Chunks were applied and get no reply: while it waited, the caller's sessions were claimed anew here."""


class Intake:
    """Takes chunks in."""

    def __init__(
        self,
        engine: Engine,
        checkpointer: Checkpointer,
        limits: Limits,
        clock: Callable[[], float],
        *,
        on_crowded: Callable[[Table], None],
    ) -> None:
        """Chunks go to `engine`, their replies through `checkpointer`; `clock` gives Unix time.

        `on_crowded` hears that replies kept for sessions that nobody has take the room of a table's replies.
        """
        self._engine = engine
        self._checkpointer = checkpointer
        self._limits = limits
        self._on_crowded = on_crowded
        self._over: tuple[int, float, Ints] = (0, 0.0, _NOBODY)
        self._most_answer = min(limits.max_answer_bytes, limits.max_kept_bytes)
        self._most_steps = limits.max_chunk_steps * limits.max_unacknowledged_chunks
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
        if table.output_bytes * chunks.lengths.total > self._most_answer:
            chunks = self._within_answer(chunks, receiver)
        if not settled:
            chunks = self._within_window(chunks, receiver)
            if table.output_bytes * self._most_steps > self._limits.max_kept_bytes:
                chunks = self._within_kept(chunks, receiver)
        if table.replies.nbytes > self._limits.max_replies_bytes:
            chunks = self._within_share(chunks, receiver)
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

    def _within_share(self, chunks: Chunks, receiver: Receiver) -> Chunks:
        """The chunks of streams for which not too many replies are kept; those of others are refused.

        The acknowledgements that came with them count, so that whoever is refused has room soon.
        """
        over = np.isin(chunks.table.owner[chunks.rows], self._over_share(chunks.table))
        if some(over):
            error = errors.WindowFull(
                f"more than {self._limits.max_replies_bytes} bytes of replies are not acknowledged, and this stream has"
                " more than its share of them; acknowledge replies before sending more",
                retry_after=_RETRY_SECONDS,
            )
            chunks = _refuse(chunks, over, receiver, error)
        return chunks

    def _over_share(self, table: Table) -> Ints:
        """The streams that have too much of a table's kept replies, looked at now and then: it is all its rows."""
        known, until, _ = self._over
        if known != id(table) or self._clock() > until:
            had = table.owner > UNBOUND
            owners, index = np.unique(table.owner[had], return_inverse=True)
            steps = (table.position[had] - table.acked[had]).astype(np.float64)
            kept, most = np.bincount(index, steps * table.output_bytes, len(owners)), self._limits.max_replies_bytes
            crowded = kept.sum() > most
            if not crowded:
                self._on_crowded(table)
            over = owners[kept > most / max(1, int(np.count_nonzero(kept)))] if crowded else _NOBODY
            self._over = id(table), self._clock() + _LOOK_SECONDS, over
        return self._over[2]

    def _within_answer(self, chunks: Chunks, receiver: Receiver) -> Chunks:
        """The chunks whose outputs are not too large to be kept and sent; the others are refused."""
        sizes, most = chunks.lengths.column * chunks.table.output_bytes, self._most_answer
        large = sizes > most
        if some(large):
            limit = "--max-answer-bytes" if most == self._limits.max_answer_bytes else "--max-kept-bytes"
            error = too_large(
                f"the outputs of a chunk of model {chunks.table.model.name!r}",
                int(sizes.max()),
                most,
                f"Send fewer steps at a time, or raise {limit}",
            )
            chunks = _refuse(chunks, large, receiver, error)
        return chunks

    def _within_kept(self, chunks: Chunks, receiver: Receiver) -> Chunks:
        """The chunks of sessions whose replies have room beside what is kept of them; the others are refused."""
        table, rows, most = chunks.table, chunks.rows, self._limits.max_kept_bytes
        # More than there is, where the caller acknowledged nothing here of what the session had before.
        full = (chunks.ends - table.acked[rows]) * np.uint64(table.output_bytes) > most
        if some(full):
            ahead = (chunks.ends - table.position[rows]).astype(np.int64)
            full &= (ahead + table.replies.steps(rows)) * table.output_bytes > most
            full &= chunks.lengths.column > 0
        if some(full):
            error = errors.WindowFull(
                f"the replies of the session that are not acknowledged, with this one, have more than {most:,} bytes;"
                " acknowledge replies before sending more, or raise --max-kept-bytes",
                retry_after=_RETRY_SECONDS,
            )
            chunks = _refuse(chunks, full, receiver, error)
        return chunks

    def _submit(self, chunks: Chunks, receiver: Receiver) -> None:
        table, rows = chunks.table, chunks.rows
        table.queued[rows] = chunks.ends
        kinds = chunks.marks.kinds if chunks.marks is not None else None
        work = Work(rows, chunks.lengths, chunks.inputs, _Commit(self, chunks, receiver), kinds=kinds)
        self._engine.submit(table, work, Priority.LIVE)

    def _answer_old(self, chunks: Chunks, receiver: Receiver) -> None:
        """Answers chunks that do not start where their sessions stand: replies that are kept again, or refusals."""
        table = chunks.table
        entries = table.replies.lookup(chunks.rows, chunks.starts)
        same = known = np.flatnonzero(entries != NONE)
        if len(known):
            _, steps, kept = table.replies.columns(entries[known])
            came = chunks.take(known)
            same = known[(steps == came.lengths.column) & (kept == came.digests())]
        if len(same):
            self._repeat(chunks.bare(same), entries[same], receiver)
        rest = np.setdiff1d(counting(len(chunks.rows)), same)
        if len(rest):
            receiver.refused(chunks.bare(rest), _complaints(chunks, rest, kept=entries[rest] != NONE))

    def commit(self, chunks: Chunks, work: Work, places: Ints, receiver: Receiver) -> None:
        """Position, reply and durability of chunks that ran; their states are committed already."""
        outputs: Sequence[Array] = work.outputs
        inputs = chunks.inputs
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
        if chunks.marks is None:
            table.replies.append(rows, chunks.starts, chunks.ends, chunks.lengths, outputs, inputs=inputs)
        else:
            outputs = self._commit_marks(chunks, chunks.marks, outputs)
        self._answer(chunks, outputs, receiver)

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

    def _answer(self, chunks: Chunks, outputs: Sequence[Array], receiver: Receiver) -> None:
        """Lets the replies to applied chunks leave, now or when they may."""
        table, rows = chunks.table, chunks.rows
        if self._checkpointer.lets_go(table, rows):
            receiver.results(chunks, outputs)
            return
        self._release(
            chunks, receiver, lambda still: receiver.results(chunks.bare(still), chunks.lengths.pack(outputs, still))
        )

    def _repeat(self, chunks: Chunks, entries: Ints, receiver: Receiver) -> None:
        """Lets replies that are kept leave again, now or when they may."""
        if self._checkpointer.lets_go(chunks.table, chunks.rows):
            receiver.repeated(chunks, entries)
            return
        self._release(chunks, receiver, lambda still: receiver.repeated(chunks.bare(still), entries[still]))

    def _release(self, chunks: Chunks, receiver: Receiver, deliver: Callable[[Ints], None]) -> None:
        """Delivers the replies at some places once they may leave, as far as their sessions are still the caller's."""
        table, rows = chunks.table, chunks.rows
        claims = table.claims(rows)

        def answer(places: Ints, error: errors.StatestreamError | None) -> None:
            # While replies waited, another claim or owner may have taken some of the sessions.
            ours = table.are_claimed(rows[places], (claims[0][places], claims[1][places]))
            still, left = places[ours], places[~ours]
            if len(still) and error is not None:
                receiver.refused(chunks.bare(still), error)
            elif len(still):
                deliver(still)
            if len(left):
                _tell_overtaken(chunks.bare(left), (claims[0][left], claims[1][left]), receiver)

        self._checkpointer.release(table, rows, answer)

    def refuse(self, chunks: Chunks, places: Ints, receiver: Receiver, error: errors.StatestreamError) -> None:
        """Chunks that were not applied."""
        table, rows = chunks.table, chunks.rows[places]
        table.queued[rows] = table.position[rows]
        receiver.refused(chunks.bare(places), error)

    def refuse_behind(self, chunks: Chunks, places: Ints, receiver: Receiver) -> None:
        """Chunks that were queued behind one that was not applied: they cannot be either."""
        positions = chunks.table.position[chunks.rows[places]]

        def gap(place: int) -> errors.StatestreamError:
            position = int(positions[place])
            return errors.PositionGap(
                f"a chunk before this one was not applied; the session is at {position}, send from there",
                metadata={"expected_position": str(position)},
            )

        receiver.refused(chunks.bare(places), gap)


def too_large(what: str, size: int, most: int, remedy: str) -> errors.AnswerTooLarge:
    """What is said of an answer that is not made, or not sent."""
    return errors.AnswerTooLarge(
        f"{what} have {size:,} bytes; this server's limit is {most:,}. Nothing was applied. {remedy}",
        metadata={"size": str(size), "limit": str(most)},
    )


class _Commit:
    """The sink of one accepted frame."""

    def __init__(self, intake: Intake, chunks: Chunks, receiver: Receiver) -> None:
        self._intake = intake
        self._chunks = chunks
        self._receiver = receiver

    def completed(self, work: Work, places: Ints) -> None:
        self._intake.commit(self._chunks, work, places, self._receiver)

    def failed(self, work: Work, places: Ints, error: errors.StatestreamError) -> None:
        self._intake.refuse(self._chunks, places, self._receiver, error)

    def behind(self, work: Work, places: Ints) -> None:
        self._intake.refuse_behind(self._chunks, places, self._receiver)


def _tell_overtaken(chunks: Chunks, claims: tuple[Ints, Positions], receiver: Receiver) -> None:
    """Tells of applied chunks whose replies do not leave, because their sessions are not the caller's any more."""
    table, rows = chunks.table, chunks.rows
    gone = (table.serial[rows] != claims[0]) | (table.epoch[rows] == 0)
    if some(gone):
        left = errors.SessionMoved("the session left this server before the reply to the chunk could leave")
        receiver.refused(chunks.bare(np.flatnonzero(gone)), left)
    overtaken = np.flatnonzero(~gone & ~table.are_claimed(rows, claims))
    if len(overtaken):
        receiver.overtaken(chunks.bare(overtaken))


def _complaints(chunks: Chunks, places: Ints, *, kept: Bools) -> Refusal:
    """What is wrong with chunks that are neither the next of their session nor such whose reply is kept.

    Args:
        chunks: The chunks.
        places: [n] which of them.
        kept: [n] whether another chunk's reply is kept at the same position.
    """
    rows, starts, ends = chunks.rows[places], chunks.starts[places], chunks.ends[places]
    queued, acked = chunks.table.queued[rows], chunks.table.acked[rows]

    def complaint(place: int) -> errors.StatestreamError:
        start, end, position = int(starts[place]), int(ends[place]), int(queued[place])
        if start > position:
            return errors.PositionGap(
                f"the chunk starts at {start}, the session is at {position}; send from {position}",
                metadata={"expected_position": str(position)},
            )
        if not kept[place] and end <= int(acked[place]):
            return errors.AlreadyApplied(
                f"the chunk {start}…{end} was applied and its reply acknowledged (position {position}); go on from"
                " there",
                metadata={"position": str(position)},
            )
        return errors.PositionConflict(
            f"another chunk was applied at {start} (the session is at {position}): either two callers write to this"
            " session, or this one changed its inputs",
            metadata={"position": str(position)},
        )

    return complaint


def _refuse(chunks: Chunks, which: Bools, receiver: Receiver, error: errors.StatestreamError) -> Chunks:
    """Refuses some chunks; returns the others."""
    if some(which):
        receiver.refused(chunks.bare(np.flatnonzero(which)), error)
    return chunks.take(np.flatnonzero(~which))
