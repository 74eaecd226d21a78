"""The lane against a plain model of it: order in each row, each chunk ends once, batches are of one slice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from statestream_server.engine.lane import Lane
from statestream_server.engine.lengths import Lengths
from statestream_server.engine.tickets import Ticket
from statestream_server.engine.work import Part, Priority, Work

ROWS = 6


def oldest(lane: Lane, priority: Priority) -> tuple[int, int] | None:
    """Age and slice of what waits longest in a class."""
    return min(((head.age, head.steps) for head in lane.heads() if head.priority == priority), default=None)


def work_of(rows: list[int], steps: list[int]) -> Work:
    return Work(np.asarray(rows, np.int64), Lengths.of(np.asarray(steps)), [])


@dataclass(eq=False)
class Chunk:
    """What the model knows of one chunk."""

    work: int
    place: int
    row: int
    steps: int
    priority: Priority
    ready: int = 0
    done: int = 0

    @property
    def slice(self) -> int:
        return 1 << (min(self.steps - self.done, 16).bit_length() - 1)


class LaneMachine(RuleBasedStateMachine):
    """Any order of enqueue, take, advance and cancel, one batch at a time as the engine runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, list[Chunk]] = {row: [] for row in range(ROWS)}
        self.lane = Lane(16)
        self.lane.grow(ROWS)
        self.ages = 0
        self.works = 0
        self.batch: list[Part] | None = None
        self.steps = 0
        self.running: list[Chunk] = []
        self.ended: set[tuple[int, int]] = set()
        self.numbers: dict[int, int] = {}
        self.kept: list[Work] = []
        self.waits: list[tuple[list[Chunk], list[int]]] = []

    @rule(
        steps=st.dictionaries(st.integers(0, ROWS - 1), st.integers(1, 40), min_size=1),
        priority=st.sampled_from(Priority),
    )
    def enqueue(self, steps: dict[int, int], priority: Priority) -> None:
        self.works, self.ages = self.works + 1, self.ages + 1
        work = work_of(list(steps), list(steps.values()))
        self.numbers[id(work)] = self.works
        self.kept.append(work)
        self.lane.enqueue(work, priority, self.ages)
        for place, (row, count) in enumerate(steps.items()):
            self.rows[row].append(Chunk(self.works, place, row, count, priority, self.ages))

    @precondition(lambda self: self.batch is None and any(self.rows.values()))
    @rule(most=st.integers(1, ROWS), choice=st.integers(0, 2))
    def take(self, most: int, choice: int) -> None:
        waiting = sorted({queue[0].priority for queue in self.rows.values() if queue})
        priority = waiting[choice % len(waiting)]
        found = oldest(self.lane, priority)
        heads = [queue[0] for queue in self.rows.values() if queue and queue[0].priority == priority]
        assert found is not None
        assert found[0] == min(chunk.ready for chunk in heads), "the group whose head waits longest"
        assert found[1] in {chunk.slice for chunk in heads if chunk.ready == found[0]}
        self.steps = found[1]
        self.batch = list(self.lane.take(priority, self.steps, most).parts)
        chunks = [(part.work, place) for part in self.batch for place in part.places.tolist()]
        assert 1 <= len(chunks) <= most
        rows = [int(work.rows[place]) for work, place in chunks]
        assert len(set(rows)) == len(rows), "no row twice in a batch"
        self.running = [self.rows[row][0] for row in rows]
        alike = [chunk for chunk in heads if chunk.slice == self.steps]
        assert len(chunks) == min(most, len(alike)), "all that fit"
        for (work, place), chunk in zip(chunks, self.running, strict=True):
            assert (self.numbers[id(work)], place) == (chunk.work, chunk.place), "only the first may run"
            assert (0 if work.done is None else work.done[place]) == chunk.done
            assert chunk.slice == self.steps
            assert self.steps & (self.steps - 1) == 0

    @precondition(lambda self: self.batch is not None)
    @rule(bad=st.lists(st.booleans(), min_size=ROWS, max_size=ROWS))
    def advance(self, bad: list[bool]) -> None:
        assert self.batch is not None
        failed = np.asarray(bad[: len(self.running)])
        self.ages += 1
        ended = self.lane.advance(self.batch, self.steps, failed if failed.any() else None, self.ages)
        expected: tuple[list[Chunk], list[Chunk], list[Chunk]] = ([], [], [])
        for chunk, wrong in zip(self.running, failed.tolist(), strict=True):
            chunk.done += self.steps
            chunk.ready = self.ages
            if wrong or chunk.done == chunk.steps:
                queue = self.rows[chunk.row]
                assert queue.pop(0) is chunk
                expected[wrong].append(chunk)
                if wrong:
                    expected[2].extend(queue)
                    queue.clear()
                if queue:
                    queue[0].ready = self.ages
        self._end(ended.finished, expected[0])
        self._end(ended.failed, expected[1])
        self._end(ended.behind, expected[2])
        self.batch, self.running = None, []

    @rule(rows=st.sets(st.integers(0, ROWS - 1), min_size=1))
    def wait(self, rows: set[int]) -> None:
        served: list[int] = []
        queued = [chunk for row in rows for chunk in self.rows[row]]
        waits = self.lane.watch(np.asarray(sorted(rows)), Ticket(lambda: served.append(1)))
        assert waits == bool(queued)
        if waits:
            self.waits.append((queued, served))

    @invariant()
    def those_who_wait_hear_once_when_what_was_queued_then_has_ended(self) -> None:
        for queued, served in self.waits:
            left = any(chunk in self.rows[chunk.row] for chunk in queued)
            assert len(served) == (not left)

    @rule(rows=st.sets(st.integers(0, ROWS - 1), min_size=1))
    def cancel(self, rows: set[int]) -> None:
        parts, chunks = self.lane.cancel(np.asarray(sorted(rows))), list[Chunk]()
        for row in sorted(rows):
            queue = self.rows[row]
            kept = 1 if queue and any(queue[0] is chunk for chunk in self.running) else 0
            chunks += queue[kept:]
            del queue[kept:]
        self._end(parts, chunks)

    def _end(self, parts: list[Part], chunks: list[Chunk]) -> None:
        names = [(self.numbers[id(part.work)], place) for part in parts for place in part.places.tolist()]
        assert sorted(names) == sorted((chunk.work, chunk.place) for chunk in chunks)
        assert not self.ended & set(names), "each chunk ends once"
        self.ended |= set(names)

    @invariant()
    def knows_what_is_queued(self) -> None:
        assert self.lane.queued == sum(len(queue) for queue in self.rows.values())
        assert self.lane.idle(np.arange(ROWS)).tolist() == [not self.rows[row] for row in range(ROWS)]
        assert self.lane.counts(np.arange(ROWS)).tolist() == [len(self.rows[row]) for row in range(ROWS)]
        unfinished = {chunk.work for queue in self.rows.values() for chunk in queue}
        assert {self.numbers[id(work)] for work in self.kept if work.pending} == unfinished
        running = {chunk.row for chunk in self.running}
        for priority in Priority:
            ready = [
                queue[0].ready
                for row, queue in self.rows.items()
                if queue and queue[0].priority == priority and row not in running
            ]
            found = oldest(self.lane, priority)
            assert (found[0] if found else None) == min(ready, default=None)

    def teardown(self) -> None:
        """Whatever is left runs to its end in a bounded number of batches."""
        for _ in range(1000):
            if self.batch is not None:
                self.advance([False] * ROWS)
            elif any(self.rows.values()):
                self.take(ROWS, 0)
            else:
                break
        assert self.lane.queued == 0


TestLane = LaneMachine.TestCase
TestLane.settings = settings(max_examples=60, stateful_step_count=40)


def test_a_chunk_is_cut_into_falling_powers_of_two() -> None:
    """29 = 8 + 8 + 8 + 4 + 1, at most `max_slice` at a time."""
    lane, slices, age = Lane(8), list[int](), 1
    lane.grow(1)
    lane.enqueue(work_of([0], [29]), Priority.LIVE, age)
    while (head := oldest(lane, Priority.LIVE)) is not None:
        age += 1
        batch = lane.take(Priority.LIVE, head[1], 10)
        slices.append(head[1])
        lane.advance(batch.parts, head[1], None, age)
    assert slices == [8, 8, 8, 4, 1]


def test_thousands_behind_thousands() -> None:
    """The second chunk of every row waits for the first, and all become runnable together."""
    lane, count = Lane(4), 3000
    lane.grow(count)
    works = [work_of(list(range(count)), [1] * count) for _ in range(2)]
    for age, work in enumerate(works):
        lane.enqueue(work, Priority.LIVE, age)
    assert lane.queued == 2 * count
    for work in works:
        batch = lane.take(Priority.LIVE, 1, 2 * count)
        assert [(part.work, part.places.tolist()) for part in batch.parts] == [(work, list(range(count)))]
        lane.advance(batch.parts, 1, None, 3)
    assert lane.queued == 0
    assert lane.idle(np.arange(count)).all()
