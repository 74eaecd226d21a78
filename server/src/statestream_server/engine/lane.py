"""One model's queue: chunks that wait to run, in order for each row, cut into slices. No I/O, no clock.

A queued chunk is an entry; the entries of a work have consecutive numbers. A row knows the last entry that was
queued for it, an entry the one behind it on its row, and only the first of a row may run; so a row is in at
most one batch and its chunks run in order. Runnable chunks stand in groups of equal class and slice (a power
of two of their remaining steps; 0 for marks); chunks of one group form a batch.
"""

from __future__ import annotations

from bisect import bisect_right, insort_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from statestream_server.arrays import Bools, Ints, counting, every, grown, some, span
from statestream_server.engine.line import Line
from statestream_server.engine.scheduler import Head, Why
from statestream_server.engine.suspects import Suspects
from statestream_server.engine.tickets import Ticket
from statestream_server.engine.work import NONE, Part, Priority, Work


class Taken(NamedTuple):
    """What one batch takes.

    Attributes:
        parts: The chunks, by work; all rows are distinct.
        rows: [count] their rows, in the order of the parts.
        why: Why there are not more of them.
    """

    parts: Sequence[Part]
    rows: Ints
    why: Why


class Ended(NamedTuple):
    """How chunks ended with a batch.

    Attributes:
        finished: Those that ran to their end.
        failed: Those that failed their check.
        behind: Those that were queued behind one that failed.
    """

    finished: list[Part]
    failed: list[Part]
    behind: list[Part]


@dataclass(slots=True)
class _Run:
    """Chunks of one work that became runnable together."""

    age: int
    work: Work
    places: Ints


_AGE = attrgetter("age")
_NOBODY: Ints = np.empty(0, np.int64)
_STALE = 64
"""Works that ended and are still looked through for others, at least."""
_FEW = 64
"""Entries whose works are looked for one by one, because the works may be very many."""


class Lane:
    """The queue of one table of rows."""

    def __init__(self, max_slice: int, line: Line | None = None) -> None:
        """A queue whose slices have at most `max_slice` steps (a power of two).

        Where `line` says that several tenants wait, it has their slices' ages.
        """
        self.max_slice = max_slice
        self.line = line
        self.cost = 1
        """What a step of a row costs, as the line counts it."""
        self.queued = 0
        """Chunks that wait or run."""
        self.nbytes = 0
        """Bytes of the inputs of their works."""
        self._groups: dict[tuple[Priority, int], deque[_Run]] = {}
        self._tail = np.empty(0, np.int64)
        self._entries = 0
        self._works: dict[int, Work] = {}
        self._firsts: list[int] = []
        """The first entries of the works, ascending; some that ended may be among them."""
        self._running: Sequence[Part] = ()
        self.suspects = Suspects()
        """Rows that run apart from the others."""

    def grow(self, capacity: int) -> None:
        """Makes room for rows up to `capacity` - 1."""
        self._tail = grown(self._tail, capacity, NONE)
        self.suspects.grow(capacity)

    def idle(self, rows: Ints) -> Bools:
        """Which of `rows` have nothing queued."""
        return np.asarray(self._tail[rows] == NONE)

    def watch(self, rows: Ints, ticket: Ticket) -> bool:
        """Has a ticket wait until all that is queued for `rows` now has ended; False where nothing is."""
        tails = self._tail[rows]
        tails = tails[tails != NONE]
        # What is behind on a row ends last, whether it runs or is taken out.
        for work, entries, _ in self._located(tails):
            work.watch(entries - work.first, ticket)
        return len(tails) > 0

    def counts(self, rows: Ints) -> Ints:
        """How many chunks are queued for each of `rows`; costs what all that is queued costs."""
        counts = np.zeros(len(self._tail), np.int64)
        for work in self._works.values():
            counts[work.rows if work.ended is None else work.rows[~work.ended]] += 1
        return counts[rows]

    def enqueue(self, work: Work, priority: Priority, age: int) -> None:
        """Queues the chunks of a work behind what their rows have queued.

        Args:
            work: The work.
            priority: Its class.
            age: Grows with every call; the lowest runs first.
        """
        count = work.pending = len(work.rows)
        first = work.first = self._entries
        work.priority, work.nbytes = priority, sum([array.nbytes for array in work.inputs])
        self._entries += count
        self._works[first] = work
        self._firsts.append(first)
        self.queued += count
        self.nbytes += work.nbytes
        ready = counting(count)
        if len(self._works) > 1:
            tails = self._tail[work.rows]
            behind = tails != NONE
            if some(behind):
                self._chain(tails[behind], first + np.flatnonzero(behind))
                ready = np.flatnonzero(~behind)
        self._tail[work.rows] = counting(count, first)
        self._ready(work, ready, age)

    def heads(self) -> list[Head]:
        """The head of every group in which chunks wait."""
        return [Head(priority, runs[0].age, steps) for (priority, steps), runs in self._groups.items()]

    def take(self, priority: Priority, steps: int, most: int) -> Taken:
        """Takes the oldest chunks of a group, `most` at the most, for one batch."""
        runs, count = self._groups[priority, steps], 0
        parts = list[Part]()
        while runs and count < most:
            run = runs[0]
            work, places = run.work, run.places
            if len(places) > most - count:
                places, run.places = places[: most - count], places[most - count :]
                if self.line is not None and self.line.several and len(runs) > 1:
                    # The rest is as old as if it had come by itself.
                    runs.popleft()
                    run.age += len(places) * max(1, steps) * self.cost
                    insort_right(runs, run, key=_AGE)
            else:
                runs.popleft()
            parts.append(Part(work, places, work.rows if len(places) == len(work.rows) else work.rows[span(places)]))
            count += len(places)
        why = Why.ALL if count == self.queued else Why.TIME
        if not runs:
            del self._groups[priority, steps]
            if why is Why.TIME:
                why = Why.SLICES if self._groups else Why.BUSY
        self._running = parts
        return Taken(parts, parts[0].rows if len(parts) == 1 else np.concatenate([part.rows for part in parts]), why)

    def advance(
        self, parts: Sequence[Part], steps: int, bad: Bools | None, age: int, again: Bools | None = None
    ) -> Ended:
        """Notes that a batch ran.

        Chunks with steps left queue up again behind what waits now. What is queued behind a chunk that failed is taken
        out: it cannot be applied either.

        Args:
            parts: What `take` gave.
            steps: How many steps of each chunk ran.
            bad: [count] which chunks failed, in the order of the parts; None for none of them.
            age: As for `enqueue`.
            again: [count] which chunks did not run after all, and wait again; None for none of them.

        Returns:
            What ended.
        """
        self._running, start = (), 0
        ended = Ended([], [], [])
        for part in parts:
            work, places, rows = part
            cut = slice(start, start := start + len(places))
            failed = bad[cut] if bad is not None else None
            if again is not None:
                self._ready(work, places[again[cut]], age)
                part = work, places, rows = part.some(~again[cut])
                failed = failed[~again[cut]] if failed is not None else None
            if work.done is not None or work.lengths.each != steps:
                done = work.column("done")
                done[places] += steps
                over = done[places] >= work.lengths.column[places]
                if failed is not None:
                    over |= failed
                    failed = failed[over]
                self._ready(work, places[~over], age)
                part = work, places, rows = part.some(over)
            if not len(places):
                continue
            if failed is None or not some(failed):
                ended.finished.append(part)
            else:
                if not every(failed):
                    ended.finished.append(part.some(~failed))
                ended.failed.append(part.some(failed))
                ended.behind.extend(self._behind(work, places[failed]))
            if work.next is None:
                self._tail[rows] = NONE
            else:
                self._follow(work, places, rows, age)
            self._end(part)
        for part in ended.behind:
            self._end(part)
        return ended

    def cancel(self, rows: Ints) -> list[Part]:
        """Takes out everything queued for rows, except a chunk that runs now; returns what was taken out."""
        if every(self.idle(rows)):
            return []
        cancelled, running, wanted = list[Part](), list[Part](), np.zeros(len(self._tail), np.bool_)
        wanted[rows] = True
        self._tail[rows] = NONE
        for work in list(self._works.values()):
            chosen = wanted[work.rows] if work.ended is None else wanted[work.rows] & ~work.ended
            for part in self._running:
                if part.work is work:
                    kept = part.places[chosen[part.places]]
                    chosen[kept] = False
                    self._tail[work.rows[kept]] = work.first + kept
                    if work.next is not None:
                        work.next[kept] = NONE
                    if len(kept):
                        running.append(Part.of(work, kept))
            places = np.flatnonzero(chosen)
            if len(places):
                cancelled.append(Part.of(work, places))
        if running:
            _hold(cancelled, running)
        for part in cancelled:
            self._end(part)
        for group, runs in list(self._groups.items()):
            for run in runs:
                if not run.work.pending:
                    run.places = _NOBODY
                elif run.work.ended is not None:
                    run.places = run.places[~run.work.ended[run.places]]
            left = deque(run for run in runs if len(run.places))
            if left:
                self._groups[group] = left
            else:
                del self._groups[group]
        return cancelled

    def _behind(self, work: Work, places: Ints) -> list[Part]:
        """Unties chunks from what is queued behind them on their rows; returns that."""
        found = list[Part]()
        if work.next is None:
            return found
        entries, work.next[places] = work.next[places], NONE
        entries = entries[entries != NONE]
        while len(entries):
            following = [_NOBODY]
            for other, some_entries, _ in self._located(entries):
                part = Part.of(other, np.sort(some_entries - other.first))
                found.append(part)
                if other.next is not None:
                    following.append(other.next[part.places])
            entries = np.concatenate(following)
            entries = entries[entries != NONE]
        return found

    def _ready(self, work: Work, places: Ints, age: int) -> None:
        """Puts runnable chunks into the groups of their next slice."""
        whole = work.lengths.each if work.done is None else 0
        slices = [((1 << min(whole, self.max_slice).bit_length()) >> 1, places)] if whole else self._cut(work, places)
        for steps, mine in slices:
            waiting = [(work.priority, mine)]
            if self.suspects.any:
                suspects = self.suspects.are(work.rows[mine])
                if some(suspects):
                    waiting = [(Priority.SUSPECT, mine[suspects]), (work.priority, mine[~suspects])]
            for priority, some_places in waiting:
                if len(some_places):
                    if self.line is not None and self.line.several:
                        age = self.line.age(work.tenant, len(some_places) * max(1, steps) * self.cost)
                    runs = self._groups.get((priority, steps))
                    if runs is None:
                        runs = self._groups[priority, steps] = deque()
                    if not runs or runs[-1].age <= age:
                        runs.append(_Run(age, work, some_places))
                    else:
                        insort_right(runs, _Run(age, work, some_places), key=_AGE)

    def _cut(self, work: Work, places: Ints) -> list[tuple[int, Ints]]:
        """The next slices of chunks that differ, or began: the steps of each, and the chunks."""
        remaining = work.lengths.column[places]
        if work.done is not None:
            remaining = remaining - work.done[places]
        # frexp gives the exponent e with 2**(e-1) <= remaining < 2**e.
        bits = np.frexp(np.minimum(remaining, self.max_slice).astype(np.float64))[1]
        return [((1 << length) >> 1, places[bits == length]) for length in np.unique(bits).tolist()]

    def _follow(self, work: Work, places: Ints, rows: Ints, age: int) -> None:
        """Lets run what is queued behind chunks that end."""
        following = work.column("next")[places]
        last = following == NONE
        self._tail[rows[last]] = NONE
        for other, entries, _ in self._located(following[~last]):
            self._ready(other, np.sort(entries - other.first), age)

    def _end(self, part: Part) -> None:
        work, places, _ = part
        self.queued -= len(places)
        work.pending -= len(places)
        if work.pending:
            if work.ended is None:
                work.ended = np.zeros(len(work.rows), np.bool_)
            work.ended[places] = True
        else:
            self.nbytes -= work.nbytes
            del self._works[work.first]
            if len(self._firsts) > 2 * len(self._works) + _STALE:
                self._firsts = list(self._works)
        if work.waits is not None:
            work.waits.ended(places, work.ended if work.pending else None)

    def _chain(self, before: Ints, entries: Ints) -> None:
        """Queues entries behind others."""
        for work, found, at in self._located(before):
            work.column("next")[found - work.first] = entries[at]

    def _located(self, entries: Ints) -> Iterator[tuple[Work, Ints, Ints]]:
        """Groups entries by work: the work, its entries, and the indices into `entries`."""
        if not len(entries):
            return
        firsts = self._firsts
        first = firsts[bisect_right(firsts, int(entries[0])) - 1]
        work = self._works[first]
        if first <= int(entries.min()) and int(entries.max()) < first + len(work.rows):
            yield work, entries, counting(len(entries))
            return
        if len(entries) < _FEW:
            numbers = np.asarray([bisect_right(firsts, entry) - 1 for entry in entries.tolist()])
        else:
            numbers = np.searchsorted(np.asarray(firsts), entries, side="right") - 1
        for number in np.unique(numbers).tolist():
            at = np.flatnonzero(numbers == number)
            yield self._works[firsts[number]], entries[at], at


def _hold(cancelled: Sequence[Part], running: Sequence[Part]) -> None:
    """Has those who wait for chunks that are taken out wait for what runs now on their rows."""
    waiting = [(part.work, found) for part in cancelled if part.work.waits for found in part.work.waits.on(part.places)]
    if waiting:
        at = {
            int(part.work.rows[place]): Part.of(part.work, part.places[[index]])
            for part in running
            for index, place in enumerate(part.places.tolist())
        }
        for work, (place, ticket) in waiting:
            now = at.get(int(work.rows[place]))
            if now is not None:
                now.work.watch(now.places, ticket)
