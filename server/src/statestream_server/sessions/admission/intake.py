"""The intake: what becomes of a chunk that comes (applied, answered again, or refused), and how it is committed.

All rules compare columns, so a frame of a thousand sessions costs what one comparison costs; only duplicates and
refusals are looked at one by one. A thousand streams with a session each send a thousand frames: those that arrive
before the engine runs its next batch are laid out as columns first, by the coalescer, and go in as one. No I/O; time
comes from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import add, attrgetter
from typing import Any, Final, Protocol

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array, Ints, Positions, counting, every, same, some
from statestream_server.engine.digests import OLDER
from statestream_server.engine.engine import Engine
from statestream_server.engine.lengths import Lengths, alike
from statestream_server.engine.marks import RESET, Marks
from statestream_server.engine.replies import NONE
from statestream_server.engine.table import Table
from statestream_server.engine.work import Priority
from statestream_server.sessions.admission.bounds import Bounds
from statestream_server.sessions.admission.chunks import Chunks, Refusal, error_at
from statestream_server.sessions.admission.complaints import complain, tell_overtaken
from statestream_server.sessions.admission.taps import Taps
from statestream_server.sessions.releases import Release

LARGE: Final = 1 << 20
"""Where a single chunk has outputs of more bytes than that, they are not copied as bytes before they are sent."""


class Gate(Protocol):
    """Who says when replies may leave: the lease, or in mode `sync` the checkpointer."""

    def lets_go(self, table: Table, rows: Ints) -> bool:
        """Whether everything applied to `rows` so far may be answered at once; else see `release`."""

    def release(self, table: Table, rows: Ints, release: Release) -> None:
        """Calls `release`, in order, once everything applied to `rows` so far may be answered."""


class Intake:
    """Takes chunks in, and hears of the engine what became of them."""

    def __init__(self, engine: Engine, gate: Gate, bounds: Bounds, clock: Callable[[], float]) -> None:
        """Chunks go to `engine`, their replies through `gate`; `clock` gives seconds that never go back."""
        self._engine = engine
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


class Single(Protocol):
    """One chunk; who sent it gets its reply by one of these methods."""

    @property
    def row(self) -> int:
        """The session's row."""

    @property
    def binding(self) -> int:
        """The claim under which the sender has it."""

    @property
    def start(self) -> int:
        """The position at which the chunk starts."""

    @property
    def acked(self) -> int:
        """The position up to which the caller has the replies."""

    @property
    def steps(self) -> int:
        """Its steps."""

    @property
    def inputs(self) -> Sequence[bytes]:
        """The bytes of every input, checked against the signature."""

    def result(self, durable: int, outputs: Sequence[bytes]) -> None:
        """The chunk was applied: the durable position, and the bytes [steps, ...one step] of every output."""

    def large(self, durable: int, lengths: Lengths, outputs: Sequence[Array]) -> None:
        """The same of a chunk with large outputs, as views of arrays that nobody changes."""

    def refused(self, error: errors.StatestreamError) -> None:
        """The chunk was not applied."""

    def overtaken(self) -> None:
        """The chunk was applied and gets no reply; see Receiver."""


_COLUMNS: Final = attrgetter("row", "binding", "start", "acked", "steps", "inputs")


class Coalescer:
    """What arrived since the last batch began, by table."""

    def __init__(self, intake: Intake, engine: Engine) -> None:
        """Nothing arrived. The engine asks for what came before it chooses a batch."""
        self._intake = intake
        self._engine = engine
        engine.feeds.append(self.empty)
        self._arrived: dict[int, tuple[Table, dict[int, Single]]] = {}
        self._requests: dict[tuple[int, int], int] = {}
        """The digests of request ids, by table and row; few have one."""
        self._unders: dict[int, list[Any]] = {}
        """By table: the frames that they came with, where these are traced."""

    def put(self, table: Table, single: Single, request: int = 0) -> bool:
        """Takes a chunk, which goes on with the next turn of the engine; `request` is the digest of a request id.

        Returns:
            False where one of its session lies here already: then `empty` comes before this one.
        """
        arrived = self._arrived.get(id(table))
        if arrived is None:
            arrived = self._arrived[id(table)] = table, {}
        singles = arrived[1]
        if single.row in singles:
            return False
        singles[single.row] = single
        if request:
            self._requests[id(table), single.row] = request
        if self._engine.tracer is not None:
            self._unders.setdefault(id(table), []).extend(self._engine.tracer.queued())
        self._engine.wake(1)
        return True

    def empty(self) -> None:
        """Passes on what arrived. Call it before anything that must come after."""
        arrived, self._arrived = self._arrived, {}
        requests, self._requests = self._requests, {}
        tracer = self._engine.tracer
        for table, singles in arrived.values():
            if tracer is None:
                self._pass_on(table, tuple(singles.values()), requests)
                continue
            unders = self._unders.pop(id(table), [])
            with tracer.within(unders):
                self._pass_on(table, tuple(singles.values()), requests)
            tracer.ended(unders)

    def holds(self, table: Table, row: int) -> bool:
        """Whether a chunk of a session arrived and was not passed on."""
        arrived = self._arrived.get(id(table))
        return arrived is not None and row in arrived[1]

    def _pass_on(self, table: Table, singles: Sequence[Single], requests: Mapping[tuple[int, int], int]) -> None:
        numbers, bindings, starts, acked, steps, inputs = zip(*map(_COLUMNS, singles), strict=True)
        rows = np.array(numbers, np.int64)
        if not same(table.binding[rows], np.array(bindings, np.int64)):
            here = table.binding[rows] == bindings
            moved = errors.SessionMoved("the session was opened anew, or left, before the chunk ran")
            for place in np.flatnonzero(~here).tolist():
                singles[place].refused(moved)
            singles = [singles[place] for place in np.flatnonzero(here).tolist()]
            if singles:
                self._pass_on(table, singles, requests)
            return
        if self._engine.line.several:
            # Each tenant has a place of its own in the line.
            apart = dict[str, list[Single]]()
            for tenant, single in zip(table.tenant[rows].tolist(), singles, strict=True):
                apart.setdefault(tenant, []).append(single)
            if len(apart) > 1:
                for theirs in apart.values():
                    self._pass_on(table, theirs, requests)
                return
        uniform = steps.count(steps[0]) == len(steps)
        named = [requests.get((id(table), row), 0) for row in numbers] if requests else ()
        self._intake.accept(
            Chunks(
                rows,
                alike(len(steps), steps[0]) if uniform else Lengths.of(np.array(steps, np.int64)),
                [
                    np.frombuffer(b"".join(parts), dtype).reshape(-1, *shape)
                    for (dtype, shape), parts in zip(table.inputs, zip(*inputs, strict=True), strict=True)
                ],
                table=table,
                handles=counting(len(rows)),
                starts=np.array(starts, np.uint64),
                ends=np.array(list(map(add, starts, steps)), np.uint64),
                acked=np.array(acked, np.uint64),
                receiver=_Senders(singles),
                requests=np.array(named, np.uint64) if any(named) else None,
            )
        )


@dataclass(slots=True)
class _Senders:
    """Hands replies to those who sent the chunks; the handles of its chunks are places in this list."""

    singles: Sequence[Single]

    def results(self, chunks: Chunks, outputs: Sequence[Array]) -> None:
        offset, lengths = 0, chunks.lengths
        if chunks.table.output_bytes * (lengths.each or int(lengths.column.max())) > LARGE:
            self._large(chunks, lengths, outputs)
            return
        durable = chunks.table.durable[chunks.rows].tolist()
        steps_of = [lengths.each] * lengths.count if lengths.each else lengths.column.tolist()
        # Cutting bytes costs a tenth of what cutting arrays costs.
        data = [(array.tobytes(), array.nbytes // lengths.total) for array in outputs]
        for place, steps, position in zip(chunks.handles.tolist(), steps_of, durable, strict=True):
            end = offset + steps
            cut = [whole[offset * width : end * width] for whole, width in data]
            self.singles[place].result(position, cut)
            offset = end

    def repeated(self, chunks: Chunks, entries: Ints) -> None:
        self._large(chunks, *chunks.table.replies.outputs(entries))

    def _large(self, chunks: Chunks, lengths: Lengths, outputs: Sequence[Array]) -> None:
        """Copies nothing: what is written when its turn comes need not be bytes now."""
        durable = chunks.table.durable[chunks.rows].tolist()
        for place, (sender, position) in enumerate(zip(chunks.handles.tolist(), durable, strict=True)):
            one = np.asarray([place])
            self.singles[sender].large(position, lengths.take(one), lengths.pack(outputs, one))

    def refused(self, chunks: Chunks, refusal: Refusal) -> None:
        for place, sender in enumerate(chunks.handles.tolist()):
            self.singles[sender].refused(error_at(refusal, place))

    def overtaken(self, chunks: Chunks) -> None:
        for sender in chunks.handles.tolist():
            self.singles[sender].overtaken()
