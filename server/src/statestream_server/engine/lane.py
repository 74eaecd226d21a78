"""One model's queue: chunks that wait to run, in order for each row, cut into slices. No I/O, no clock.

A queued chunk is an entry. The entries of a row form a list, and only its first may run, so a row is in
at most one batch and its chunks run in order. Runnable entries stand in groups of equal class and slice
(a power of two of their remaining steps); rows of one group form a batch.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from statestream_server.arrays import Bools, Freelist, Ints, grown

NONE = -1


class Priority(enum.IntEnum):
    """Classes of work, most urgent first; each has a guaranteed share (see scheduler.py)."""

    LIVE = 0
    GENERATE = 1
    FORECAST = 2


@dataclass(frozen=True, slots=True)
class Slice:
    """What one batch takes.

    Attributes:
        entries: [n] the entries; their rows are distinct.
        steps: How many steps of each.
    """

    entries: Ints
    steps: int


@dataclass(slots=True)
class _Run:
    """Entries that became runnable together."""

    age: int
    entries: Ints


class Lane:
    """The queue of one table of rows."""

    def __init__(self, max_slice: int) -> None:
        """A queue whose slices have at most `max_slice` steps (a power of two)."""
        self.max_slice = max_slice
        self._groups: dict[tuple[int, int], deque[_Run]] = {}
        self._free = Freelist()
        self._head = np.empty(0, np.int64)
        self._tail = np.empty(0, np.int64)
        self._next = np.empty(0, np.int64)
        self._running = np.empty(0, np.bool_)
        self.row = np.empty(0, np.int64)
        """[entries] the row of each entry."""
        self.steps = np.empty(0, np.int64)
        """[entries] the steps of its chunk."""
        self.done = np.empty(0, np.int64)
        """[entries] the steps that ran already, on a shadow row."""
        self.shadow = np.empty(0, np.int64)
        """[entries] the shadow row, -1 while there is none."""
        self.work = np.empty(0, np.int64)
        """[entries] the number of the work that it belongs to."""
        self.place = np.empty(0, np.int64)
        """[entries] its place in that work."""
        self._priority = np.empty(0, np.int8)

    def grow(self, capacity: int) -> None:
        """Makes room for rows up to `capacity` - 1."""
        self._head = grown(self._head, capacity, NONE)
        self._tail = grown(self._tail, capacity, NONE)

    @property
    def queued(self) -> int:
        """Entries that wait or run."""
        return self._free.capacity - len(self._free)

    def idle(self, rows: Ints) -> Bools:
        """Which of `rows` have nothing queued."""
        return np.asarray(self._head[rows] == NONE)

    def enqueue(self, rows: Ints, steps: Ints, work: int, priority: Priority, age: int) -> None:
        """Queues one chunk for each of `rows` (distinct), behind what these rows have queued.

        Args:
            rows: [n] the rows.
            steps: [n] the steps of each chunk, 1 or more.
            work: The number of the work; entry i has place i in it.
            priority: Its class.
            age: Grows with every call; the lowest runs first.
        """
        entries = self._allocate(len(rows))
        self.row[entries], self.steps[entries], self.done[entries] = rows, steps, 0
        self.shadow[entries], self.work[entries], self.place[entries] = NONE, work, np.arange(len(rows))
        self._priority[entries], self._next[entries], self._running[entries] = priority, NONE, False
        tails = self._tail[rows]
        first = tails == NONE
        self._head[rows[first]] = entries[first]
        self._next[tails[~first]] = entries[~first]
        self._tail[rows] = entries
        self._ready(entries[first], age)

    def oldest(self, priority: Priority) -> tuple[int, int] | None:
        """The age and the slice of the group of this class whose head waits longest."""
        best: tuple[int, int] | None = None
        for (group_priority, steps), runs in self._groups.items():
            while runs and not len(runs[0].entries):
                runs.popleft()
            if group_priority == priority and runs and (best is None or runs[0].age < best[0]):
                best = (runs[0].age, steps)
        return best

    def take(self, priority: Priority, steps: int, most: int) -> Slice:
        """Takes the oldest entries of a group, `most` at the most, for one batch."""
        runs, taken, count = self._groups[priority, steps], list[Ints](), 0
        while runs and count < most:
            entries = runs[0].entries
            part = entries[: most - count]
            if len(part) < len(entries):
                runs[0].entries = entries[len(part) :]
            else:
                runs.popleft()
            if len(part):
                taken.append(part)
                count += len(part)
        entries = taken[0] if len(taken) == 1 else np.concatenate(taken)
        self._running[entries] = True
        return Slice(entries, steps)

    def advance(self, batch: Slice, failed: Bools, age: int) -> tuple[Ints, Ints]:
        """Notes that a batch ran.

        Entries with steps left queue up again behind what waits now. Finished and failed entries end:
        read their columns, then `release` them.

        Returns:
            The finished entries and the failed ones.
        """
        entries = batch.entries
        self._running[entries] = False
        self.done[entries] += batch.steps
        ended = failed | (self.done[entries] >= self.steps[entries])
        self._ready(entries[~ended], age)
        over = entries[ended]
        following = self._next[over]
        rows = self.row[over]
        self._head[rows] = following
        self._tail[rows[following == NONE]] = NONE
        self._ready(following[following != NONE], age)
        return entries[ended & ~failed], entries[failed]

    def cancel(self, rows: Sequence[int]) -> Ints:
        """Takes out everything queued for rows, except an entry that runs now; returns the entries.

        Read their columns, then `release` them.
        """
        cancelled = list[int]()
        for row in rows:
            entry = int(self._head[row])
            if entry == NONE:
                continue
            if self._running[entry]:
                kept, entry = entry, int(self._next[entry])
                self._next[kept], self._tail[row] = NONE, kept
            else:
                self._head[row] = self._tail[row] = NONE
            while entry != NONE:
                cancelled.append(entry)
                entry = int(self._next[entry])
        entries = np.asarray(cancelled, np.int64)
        # Runs hold entry numbers: those of cancelled ones must not be taken for their successors'.
        for runs in self._groups.values():
            for run in runs:
                run.entries = run.entries[~np.isin(run.entries, entries)]
        return entries

    def running(self, rows: Ints) -> Bools:
        """Which of `rows` are in the batch that runs now."""
        heads = self._head[rows]
        running = np.zeros(len(rows), np.bool_)
        some = heads != NONE
        running[some] = self._running[heads[some]]
        return running

    def release(self, entries: Ints) -> None:
        """Frees ended entries."""
        self._free.give(entries)

    def _ready(self, entries: Ints, age: int) -> None:
        """Puts runnable entries into the groups of their next slice."""
        if not len(entries):
            return
        remaining = np.minimum(self.steps[entries] - self.done[entries], self.max_slice)
        priorities = self._priority[entries].astype(np.int64)
        # frexp gives the exponent e with 2**(e-1) <= remaining < 2**e.
        keys = priorities * 64 + np.frexp(remaining.astype(np.float64))[1]
        if (keys == keys[0]).all():
            self._push(int(keys[0]), entries, age)
            return
        order = np.argsort(keys, kind="stable")
        cuts = np.flatnonzero(np.diff(keys[order])) + 1
        for group in np.split(order, cuts):
            self._push(int(keys[group[0]]), entries[group], age)

    def _push(self, key: int, entries: Ints, age: int) -> None:
        priority, exponent = divmod(key, 64)
        self._groups.setdefault((priority, 1 << (exponent - 1)), deque()).append(_Run(age, entries))

    def _allocate(self, count: int) -> Ints:
        if count > len(self._free):
            capacity = max(1024, 2 * self._free.capacity, self._free.capacity + count)
            self._free.grow(capacity)
            for name in ("_next", "row", "steps", "done", "shadow", "work", "place"):
                setattr(self, name, grown(getattr(self, name), capacity, NONE))
            self._priority = grown(self._priority, capacity, 0)
            self._running = grown(self._running, capacity, False)
        return self._free.take(count)
