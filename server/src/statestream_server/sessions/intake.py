"""What becomes of an arriving chunk: applied, answered again from the reply window, or refused.

All rules compare columns, so a frame of a thousand sessions costs what one comparison costs; only
duplicates and refusals are looked at one by one. No I/O; time comes from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from statestream import errors
from statestream_server.arrays import Array, Bools, Ints, Positions
from statestream_server.engine import digests
from statestream_server.engine.engine import Engine
from statestream_server.engine.lane import Priority
from statestream_server.engine.table import Table
from statestream_server.engine.work import Work
from statestream_server.sessions.saver import Saver
from statestream_server.settings import Limits

_RETRY_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Chunks:
    """N chunks as they came, of sessions of one table.

    Attributes:
        table: The table.
        rows: [N] distinct rows.
        handles: [N] what the caller calls them.
        starts: [N] the position at which each starts.
        acked: [N] the position up to which the caller has the replies.
        steps: [N] steps of each.
        inputs: One packed array for every input, [S, ...one step].
        request: Digest of the caller's request id, 0 for none.
    """

    table: Table
    rows: Ints
    handles: Array
    starts: Positions
    acked: Positions
    steps: Ints
    inputs: Sequence[Array]
    request: int = 0


class Receiver(Protocol):
    """Who gets the replies to chunks; called on the loop."""

    def results(
        self, table: Table, handles: Array, rows: Ints, starts: Positions, steps: Ints, outputs: Sequence[Array]
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
        late: Ints = rows[(starts < table.queued[rows]) & (starts >= table.position[rows])]
        return late

    def accept(self, chunks: Chunks, receiver: Receiver) -> None:
        """Queues what is new, answers what is not."""
        table, rows = chunks.table, chunks.rows
        self.acknowledge(table, rows, chunks.acked)
        fresh = chunks.starts == table.queued[rows]
        for place in np.flatnonzero(~fresh).tolist():
            self._answer_old(chunks, place, receiver)
        fresh &= self._within_limits(chunks, fresh, receiver)
        if fresh.all():
            self._submit(chunks, receiver)
        elif fresh.any():
            self._submit(_subset(chunks, np.flatnonzero(fresh)), receiver)

    def acknowledge(self, table: Table, rows: Ints, acked: Positions) -> None:
        """Forgets the replies of `rows` (distinct) up to the positions `acked`, and to what was applied at most."""
        acked = np.minimum(acked, table.position[rows])
        more = acked > table.acked[rows]
        if more.any():
            table.acked[rows[more]] = acked[more]
            table.replies.acknowledge(rows[more], acked[more])

    def _within_limits(self, chunks: Chunks, fresh: Bools, receiver: Receiver) -> Bools:
        table, rows, limits = chunks.table, chunks.rows, self._limits
        within = np.ones(len(rows), np.bool_)
        full = fresh & (table.replies.count[rows] + table.pending[rows] >= limits.max_unacknowledged_chunks)
        for place in np.flatnonzero(full).tolist():
            within[place] = False
            error: errors.StatestreamError = errors.WindowFull(
                f"{limits.max_unacknowledged_chunks} chunks of the session are not acknowledged; acknowledge replies"
                " before sending more",
                retry_after=_RETRY_SECONDS,
            )
            receiver.refused(int(chunks.handles[place]), int(chunks.starts[place]), error)
        waiting = self._engine.queued_bytes
        if waiting and waiting + sum(array.nbytes for array in chunks.inputs) > limits.max_queued_bytes:
            error = errors.Overloaded(
                f"{waiting} bytes of chunks wait to run; the limit is {limits.max_queued_bytes}. Send again later",
                retry_after=_RETRY_SECONDS,
            )
            for place in np.flatnonzero(fresh & within).tolist():
                receiver.refused(int(chunks.handles[place]), int(chunks.starts[place]), error)
            within[:] = False
        return within

    def _submit(self, chunks: Chunks, receiver: Receiver) -> None:
        table, rows = chunks.table, chunks.rows
        work = Work(rows, chunks.steps, chunks.inputs, _Commit(self, chunks, receiver))
        table.queued[rows] += chunks.steps.astype(np.uint64)
        table.pending[rows] += 1
        self._engine.submit(table, work, Priority.LIVE)

    def _answer_old(self, chunks: Chunks, place: int, receiver: Receiver) -> None:
        """Answers a chunk that does not start where its session stands."""
        table, row = chunks.table, int(chunks.rows[place])
        start, steps = int(chunks.starts[place]), int(chunks.steps[place])
        handle, position = int(chunks.handles[place]), int(table.queued[row])
        if start > position:
            metadata = {"expected_position": str(position)}
            receiver.refused(
                handle,
                start,
                errors.PositionGap(
                    f"the chunk starts at {start}, the session is at {position}; send from {position}",
                    metadata=metadata,
                ),
            )
            return
        reply = table.replies.find(row, start)
        one = _subset(chunks, np.asarray([place]))
        if reply is not None and reply.steps == steps and reply.digest == int(_digest(one)[0]):
            claims = table.claims(one.rows)

            def answer() -> None:
                if table.are_claimed(one.rows, claims).all():
                    receiver.results(table, one.handles, one.rows, one.starts, one.steps, reply.outputs)
                else:
                    _tell_overtaken(table, one.rows, one.handles, one.starts, claims, receiver)

            self._saver.release(table, one.rows, answer)
            return
        if reply is None and start + steps <= int(table.acked[row]):
            receiver.refused(
                handle,
                start,
                errors.AlreadyApplied(
                    f"the chunk {start}…{start + steps} was applied and its reply acknowledged (position"
                    f" {position}); go on from there",
                    metadata={"position": str(position)},
                ),
            )
            return
        receiver.refused(
            handle,
            start,
            errors.PositionConflict(
                f"another chunk was applied at {start} (the session is at {position}): either two callers write to this"
                " session, or this one changed its inputs",
                metadata={"position": str(position)},
            ),
        )

    def commit(self, chunks: Chunks, work: Work, places: Ints, receiver: Receiver) -> None:
        """Position, reply and durability of chunks that ran; their states are committed already."""
        table, rows = chunks.table, work.rows[places]
        steps, starts, offsets = work.steps[places], chunks.starts[places], work.offsets[places]
        table.position[rows] += steps.astype(np.uint64)
        table.pending[rows] -= 1
        table.used[rows] = self._clock()
        if chunks.request:
            table.request[rows] = chunks.request
        unacknowledged = table.position[rows] > table.acked[rows]
        if unacknowledged.any():
            kept = places[unacknowledged]
            table.replies.append(
                rows[unacknowledged],
                starts[unacknowledged],
                steps[unacknowledged],
                _digest(chunks)[kept],
                work.outputs,
                offsets[unacknowledged],
            )
        handles, outputs, claims = chunks.handles[places], work.outputs, table.claims(rows)

        def reply() -> None:
            # While the reply waited, another claim or owner may have taken some of the sessions.
            still = np.flatnonzero(table.are_claimed(rows, claims))
            if len(still):
                packed = _packed(outputs, offsets[still], steps[still], work.total)
                receiver.results(table, handles[still], rows[still], starts[still], steps[still], packed)
            if len(still) < len(rows):
                _tell_overtaken(table, rows, handles, starts, claims, receiver)

        self._saver.committed(table, rows, reply)

    def refuse(
        self, chunks: Chunks, work: Work, places: Ints, receiver: Receiver, error: errors.StatestreamError
    ) -> None:
        """Chunks that were not applied; those queued behind them cannot be either."""
        table, rows = chunks.table, work.rows[places]
        table.pending[rows] -= 1
        table.queued[rows] = table.position[rows]
        for place in places.tolist():
            receiver.refused(int(chunks.handles[place]), int(chunks.starts[place]), error)
        for row in rows.tolist():
            position = int(table.position[row])
            behind = errors.PositionGap(
                f"a chunk before this one was not applied; the session is at {position}, send from there",
                metadata={"expected_position": str(position)},
            )
            self._engine.cancel(table, [row], behind)


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


def _digest(chunks: Chunks) -> Positions:
    return digests.of_chunks(chunks.steps, np.cumsum(chunks.steps) - chunks.steps, chunks.inputs)


def _subset(chunks: Chunks, places: Ints) -> Chunks:
    """Some of the chunks, packed anew."""
    offsets, steps = np.cumsum(chunks.steps) - chunks.steps, chunks.steps[places]
    inputs = _packed(chunks.inputs, offsets[places], steps, int(chunks.steps.sum()))
    return Chunks(
        chunks.table,
        chunks.rows[places],
        chunks.handles[places],
        chunks.starts[places],
        chunks.acked[places],
        steps,
        inputs,
        chunks.request,
    )


def _packed(arrays: Sequence[Array], offsets: Ints, steps: Ints, total: int) -> list[Array]:
    """The steps of some chunks, packed; the arrays themselves where that is all of them."""
    if int(steps.sum()) == total and bool((np.diff(offsets) > 0).all()):
        return list(arrays)
    ends = np.cumsum(steps)
    index = np.repeat(offsets - (ends - steps), steps) + np.arange(int(ends[-1]) if len(ends) else 0)
    return [array[index] for array in arrays]
