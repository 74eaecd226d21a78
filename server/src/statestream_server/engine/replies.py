"""The reply window: replies that were computed and are not acknowledged yet, per row, column-wise.

A reply is an entry; the entries of a row form a list, oldest first. The outputs themselves stay in
the arrays in which the engine produced them ("blocks"); a block goes when its last entry goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from statestream_server.arrays import Array, Freelist, Ints, Positions, grown

NONE = -1


class Reply(NamedTuple):
    """One kept reply.

    Attributes:
        start: The position at which the chunk started.
        steps: How many steps it has.
        digest: The digest of its inputs.
        outputs: One array for every output, [steps, ...one step].
    """

    start: int
    steps: int
    digest: int
    outputs: list[Array]


@dataclass(slots=True)
class _Block:
    outputs: list[Array]
    live: int


class ReplyWindow:
    """The kept replies of all rows of one table."""

    def __init__(self) -> None:
        """A window without rows; `grow` makes room."""
        self._head = np.empty(0, np.int64)
        self._tail = np.empty(0, np.int64)
        self.count = np.empty(0, np.int32)
        """[capacity] int32: kept replies of each row."""
        self._free = Freelist()
        self._next = np.empty(0, np.int64)
        self._start = np.empty(0, np.uint64)
        self._end = np.empty(0, np.uint64)
        self._steps = np.empty(0, np.int64)
        self._digest = np.empty(0, np.uint64)
        self._offset = np.empty(0, np.int64)
        self._block = np.empty(0, np.int64)
        self._blocks: dict[int, _Block] = {}
        self._last_block = 0

    @property
    def entries(self) -> int:
        """Kept replies in all."""
        return int(self.count.sum())

    def grow(self, capacity: int) -> None:
        """Makes room for rows up to `capacity` - 1."""
        self._head = grown(self._head, capacity, NONE)
        self._tail = grown(self._tail, capacity, NONE)
        self.count = grown(self.count, capacity, 0)

    def append(
        self, rows: Ints, starts: Positions, steps: Ints, digests: Positions, outputs: Sequence[Array], offsets: Ints
    ) -> None:
        """Keeps one reply for each of `rows` (distinct).

        Args:
            rows: [n] the rows.
            starts: [n] the position at which each chunk started.
            steps: [n] the steps of each chunk.
            digests: [n] the digests of the inputs.
            outputs: One array for every output, packed [S, ...one step]; kept, not copied.
            offsets: [n] where each chunk starts in the packed arrays.
        """
        if not len(rows):
            return
        entries = self._allocate(len(rows))
        self._last_block += 1
        self._blocks[self._last_block] = _Block(list(outputs), len(rows))
        self._start[entries], self._steps[entries], self._digest[entries] = starts, steps, digests
        self._end[entries] = starts + steps.astype(np.uint64)
        self._offset[entries], self._block[entries], self._next[entries] = offsets, self._last_block, NONE
        tails = self._tail[rows]
        first = tails == NONE
        if first.all():
            self._head[rows] = entries
        else:
            self._head[rows[first]] = entries[first]
            self._next[tails[~first]] = entries[~first]
        self._tail[rows] = entries
        self.count[rows] += 1

    def acknowledge(self, rows: Ints, acked: Positions) -> None:
        """Forgets the replies of `rows` (distinct) that end at or below the positions `acked`."""
        while len(rows):
            entries = self._head[rows]
            # Entry -1 is a real index, so what it says of rows without entries is masked out.
            done = (
                (entries != NONE) & (self._end[entries] <= acked) if len(self._end) else np.zeros(len(rows), np.bool_)
            )
            if not done.all():
                rows, acked, entries = rows[done], acked[done], entries[done]
            self._pop(rows, entries)

    def drop(self, rows: Ints) -> None:
        """Forgets every reply of `rows` (distinct)."""
        self.acknowledge(rows, np.full(len(rows), np.iinfo(np.uint64).max))

    def find(self, row: int, start: int) -> Reply | None:
        """The kept reply of the chunk that started at `start`, or None."""
        entry = int(self._head[row])
        while entry != NONE and self._start[entry] < start:
            entry = int(self._next[entry])
        return self._reply(entry) if entry != NONE and self._start[entry] == start else None

    def replies(self, row: int) -> list[Reply]:
        """All kept replies of a row, oldest first."""
        found, entry = list[Reply](), int(self._head[row])
        while entry != NONE:
            found.append(self._reply(entry))
            entry = int(self._next[entry])
        return found

    def rounds(self, rows: Ints) -> list[tuple[Ints, Ints]]:
        """The entries of many rows: the oldest of each row, then the second oldest, ….

        Returns:
            Pairs (indices into `rows`, entries) for `columns`.
        """
        found, places, entries = list[tuple[Ints, Ints]](), np.arange(len(rows)), self._head[rows]
        while len(entries):
            some = entries != NONE
            places, entries = places[some], entries[some]
            if len(entries):
                found.append((places, entries))
                entries = self._next[entries]
        return found

    def columns(self, entries: Ints) -> tuple[Positions, Ints, Positions]:
        """Start positions, steps and digests of entries."""
        return self._start[entries], self._steps[entries], self._digest[entries]

    def by_block(self, entries: Ints) -> list[tuple[Ints, Ints, list[Array]]]:
        """Groups entries by where their outputs are: (indices into `entries`, offsets, packed outputs)."""
        blocks = self._block[entries]
        if len(entries) and (blocks == blocks[0]).all():
            return [(np.arange(len(entries)), self._offset[entries], self._blocks[int(blocks[0])].outputs)]
        order = np.argsort(blocks, kind="stable")
        cuts = np.flatnonzero(np.diff(blocks[order])) + 1
        groups = np.split(order, cuts) if len(entries) else []
        return [(g, self._offset[entries[g]], self._blocks[int(blocks[g[0]])].outputs) for g in groups]

    def _reply(self, entry: int) -> Reply:
        offset, steps = int(self._offset[entry]), int(self._steps[entry])
        outputs = self._blocks[int(self._block[entry])].outputs
        return Reply(
            int(self._start[entry]), steps, int(self._digest[entry]), [a[offset : offset + steps] for a in outputs]
        )

    def _allocate(self, count: int) -> Ints:
        if count > len(self._free):
            capacity = max(1024, 2 * self._free.capacity, self._free.capacity + count)
            self._free.grow(capacity)
            self._next = grown(self._next, capacity, NONE)
            self._start = grown(self._start, capacity, 0)
            self._end = grown(self._end, capacity, 0)
            self._steps = grown(self._steps, capacity, 0)
            self._digest = grown(self._digest, capacity, 0)
            self._offset = grown(self._offset, capacity, 0)
            self._block = grown(self._block, capacity, 0)
        return self._free.take(count)

    def _pop(self, rows: Ints, entries: Ints) -> None:
        """Removes the oldest entry of each row."""
        if not len(rows):
            return
        following = self._next[entries]
        self._head[rows] = following
        self._tail[rows[following == NONE]] = NONE
        self.count[rows] -= 1
        self._free.give(entries)
        blocks = self._block[entries]
        if (blocks == blocks[0]).all():
            numbers, counts = [int(blocks[0])], [len(blocks)]
        else:
            numbers, counts = (part.tolist() for part in np.unique(blocks, return_counts=True))
        for number, count in zip(numbers, counts, strict=True):
            block = self._blocks[number]
            block.live -= count
            if not block.live:
                del self._blocks[number]
