"""The reply window: replies that were computed and are not acknowledged yet, per row.

It is a log. What a batch answered is one block, kept as the arrays in which it came: nothing is done for the
single reply. A reply is an entry, entries are numbered as they come, and each knows the entry before it of its
row; so the replies of a row are found from the newest backwards, as far as they end above what is acknowledged.
Acknowledging only moves that mark. Blocks are swept now and then: young ones soon, because most replies are
acknowledged at once, what survives a few at a time. (Ungar, "Generation scavenging", 1984.)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from statestream_server.arrays import Array, Bools, Ints, Positions, counting, grown
from statestream_server.engine.blocks import Block, join
from statestream_server.engine.lengths import Lengths

NONE = -1

_YOUNG_ENTRIES: Final = 16_384
_YOUNG_BYTES: Final = 4 << 20
_YOUNG_BLOCKS: Final = 128
"""Young blocks are swept when they hold that much, or are so many: a sweep holds the loop up."""
_FEW_BLOCKS: Final = 16
"""Replies of more sessions than that are not looked for in more young blocks than that; these are swept first."""
_BLOCK_ENTRIES: Final = 4096
"""Blocks that survived are joined up to this size."""


class Reply(NamedTuple):
    """One kept reply.

    Attributes:
        start: The position at which the chunk started.
        steps: How many steps it has; 0 for a mark, which takes one position.
        digest: The digest of its inputs.
        outputs: One array for every output, of a scored chunk for every score too, [steps, ...one step].
    """

    start: int
    steps: int
    digest: int
    outputs: list[Array]


class Kept(NamedTuple):
    """Kept replies, one at most of each of some rows.

    Attributes:
        places: [m] whose they are: indices into the rows that were asked for, ascending.
        entries: [m] their numbers.
        starts, ends: [m] from where to where each goes.
    """

    places: Ints
    entries: Ints
    starts: Positions
    ends: Positions


@dataclass(eq=False, slots=True, weakref_slot=True)
class Returning:
    """Rows whose kept replies are on their way to a caller; they stay in memory while somebody has this.

    Attributes:
        rows: [n] the rows.
    """

    rows: Ints


class ReplyWindow:
    """The kept replies of all rows of one table."""

    def __init__(self) -> None:
        """A window without rows; `grow` makes room."""
        self.acked = np.empty(0, np.uint64)
        """[capacity] uint64: replies that end at or below are forgotten."""
        self._last = np.empty(0, np.int64)
        self._oldest = np.empty(0, np.int64)
        self._entries = 0
        self._blocks: list[Block] = []
        self._firsts: list[int] = []
        self._young = 0
        self._young_bytes = 0
        self._survivors = 0
        self._next_survivor = 0
        self.nbytes = 0
        """Bytes of what is in memory of them: of those that nobody needs, too, until they are swept."""

    @property
    def entries(self) -> int:
        """Kept replies in all."""
        return sum(int(self._alive(block).sum()) for block in self._blocks)

    def grow(self, capacity: int) -> None:
        """Makes room for rows up to `capacity` - 1."""
        self.acked = grown(self.acked, capacity, 0)
        self._last = grown(self._last, capacity, NONE)
        self._oldest = grown(self._oldest, capacity, 0)

    def append(
        self,
        rows: Ints,
        starts: Positions,
        ends: Positions,
        lengths: Lengths,
        outputs: Sequence[Array],
        *,
        inputs: Sequence[Array] = (),
        digests: Positions | None = None,
    ) -> None:
        """Keeps one reply for each of `rows` (distinct).

        Args:
            rows: [n] the rows.
            starts: [n] the position at which each chunk started.
            ends: [n] the position at which each ended.
            lengths: The steps of each chunk.
            outputs: One array for every output, packed [S, ...one step]; kept, not copied.
            inputs: One array for every input, packed alike, of which the digests are made when they are asked for.
            digests: [n] the digests of the inputs, where there are no inputs.
        """
        count = len(rows)
        if not count:
            return
        entries = counting(count, self._entries)
        block = Block(entries, rows, self._last[rows], starts, ends, lengths, outputs, inputs, digests)
        self._last[rows] = entries
        self._blocks.append(block)
        self._firsts.append(self._entries)
        self._entries += count
        self._young += count
        size = sum([array.nbytes for array in (*outputs, *inputs)])
        self._young_bytes += size
        self.nbytes += size
        many = len(self._blocks) - self._survivors > _YOUNG_BLOCKS
        if many or self._young > _YOUNG_ENTRIES or self._young_bytes > _YOUNG_BYTES:
            self._sweep()

    def acknowledge(self, rows: Ints, acked: Positions) -> None:
        """Forgets the replies of `rows` (distinct) that end at or below the positions `acked`."""
        self.acked[rows] = np.maximum(self.acked[rows], acked)

    def drop(self, rows: Ints) -> None:
        """Forgets every reply of `rows` (distinct), and what was acknowledged."""
        self.acked[rows], self._last[rows], self._oldest[rows] = 0, NONE, self._entries

    def counts(self, rows: Ints) -> Ints:
        """[n] the kept replies of each of `rows` (distinct)."""
        counts = np.zeros(len(rows), np.int64)
        for places, _ in self._backwards(rows):
            counts[places] += 1
        return counts

    def lookup(self, rows: Ints, starts: Positions) -> Ints:
        """[n] the kept entry of each of `rows` (distinct) whose chunk started at `starts`, NONE where there is none."""
        found = np.full(len(rows), NONE, np.int64)
        for places, entries in self._backwards(rows):
            begun, wanted = self._spans(entries)[0], starts[places]
            found[places[begun == wanted]] = entries[begun == wanted]
            if (begun <= wanted).all():
                break
        return found

    def outputs(self, entries: Ints) -> tuple[Lengths, list[Array]]:
        """The outputs of entries (one at least), in their order: lengths, and one packed array for every output.

        They have as many outputs, see `alike`; marks have none.
        """
        lengths, packed = Lengths.of(self._spans(entries)[1]), list[Array]()
        for at, block, places in self._located(entries):
            order = np.argsort(places)
            parts, index = block.lengths.pack(block.outputs, places[order]), lengths.index(at[order])
            if not (len(index) or not lengths.total):
                continue  # Marks alone.
            if not packed:
                packed = [np.empty((lengths.total, *part.shape[1:]), part.dtype) for part in parts]
            for mine, part in zip(packed, parts, strict=True):
                mine[index] = part
        return lengths, packed

    def alike(self, entries: Ints) -> Sequence[Ints | slice]:
        """Entries that have as many outputs, together: their indices. Those of scored chunks have the scores, too."""
        found = dict[int, list[Ints]]()
        for at, block, _ in self._located(entries):
            found.setdefault(len(block.outputs), []).append(at)
        if len(found) <= 1:
            return [slice(None)]
        return [np.sort(np.concatenate(parts)) for parts in found.values()]

    def views(self, entry: int) -> tuple[Lengths, list[Array]]:
        """What `outputs` has of one entry, not copied."""
        block = self._blocks[bisect_right(self._firsts, entry) - 1]
        place = int(block.places(np.asarray([entry]))[0])
        offset, steps = int(block.lengths.offsets[place]), int(block.lengths.column[place])
        return Lengths(1, steps), [array[offset : offset + steps] for array in block.outputs]

    def kept(self, rows: Ints) -> list[Kept]:
        """All kept replies of `rows` (distinct): the oldest of each row, then the second oldest, …."""
        found = list[Kept]()
        for places, entries in self.rounds(rows):
            starts, steps = self._spans(entries)
            found.append(Kept(places, entries, starts, starts + np.maximum(steps, 1).astype(np.uint64)))
        return found

    def steps(self, rows: Ints) -> Ints:
        """[n] the steps of the kept replies of each of `rows` (distinct), in all."""
        counts = np.zeros(len(rows), np.int64)
        for places, entries in self._backwards(rows):
            counts[places] += self._spans(entries)[1]
        return counts

    def replies(self, row: int) -> list[Reply]:
        """All kept replies of a row, oldest first."""
        return [self._reply(int(entries[0])) for _, entries in self._backwards(np.asarray([row]))][::-1]

    def rounds(self, rows: Ints) -> list[tuple[Ints, Ints]]:
        """The entries of many rows: the oldest of each row, then the second oldest, ….

        Returns:
            Pairs (indices into `rows`, entries) for `columns`.
        """
        if len(self._blocks) - self._survivors > _FEW_BLOCKS < len(rows):
            self._sweep()  # What follows looks at every block by itself.
        levels = list(self._backwards(rows))
        if len(levels) <= 1:
            return levels
        depths = np.zeros(len(rows), np.int64)
        for places, _ in levels:
            depths[places] += 1
        at = np.full((len(levels), len(rows)), NONE, np.int64)
        for level, (places, entries) in enumerate(levels):
            at[depths[places] - 1 - level, places] = entries
        rounds = []
        for column in at:
            places = np.flatnonzero(column != NONE)
            rounds.append((places, column[places]))
        return rounds

    def columns(self, entries: Ints) -> tuple[Positions, Ints, Positions]:
        """Start positions, steps and digests of entries."""
        found, starts = np.empty(len(entries), np.uint64), np.empty(len(entries), np.uint64)
        steps = np.empty(len(entries), np.int64)
        for at, block, places in self._located(entries):
            starts[at], steps[at] = block.starts[places], block.lengths.column[places]
            found[at] = block.digested()[places]
        return starts, steps, found

    def _spans(self, entries: Ints) -> tuple[Positions, Ints]:
        """Start positions and steps of entries."""
        starts, steps = np.empty(len(entries), np.uint64), np.empty(len(entries), np.int64)
        for at, block, places in self._located(entries):
            starts[at], steps[at] = block.starts[places], block.lengths.column[places]
        return starts, steps

    def by_block(self, entries: Ints) -> list[tuple[Ints, Ints, Sequence[Array]]]:
        """Groups entries by where their outputs are: (indices into `entries`, offsets, packed outputs)."""
        return [(at, block.lengths.offsets[places], block.outputs) for at, block, places in self._located(entries)]

    def _backwards(self, rows: Ints) -> Iterator[tuple[Ints, Ints]]:
        """The newest kept entry of each row, then the one before it, …: (indices into `rows`, entries)."""
        places, entries = counting(len(rows)), self._last[rows]
        while True:
            some = entries != NONE
            if not some.all():
                places, entries = places[some], entries[some]
            if not len(entries):
                return
            kept, before = np.zeros(len(entries), np.bool_), np.empty(len(entries), np.int64)
            acked = self.acked[rows[places]]
            for at, block, found in self._located(entries):
                # What was swept is acknowledged: it is in no block, and neither is anything before it.
                there = block.entries[np.minimum(found, len(block.entries) - 1)] == entries[at]
                at, found = at[there], found[there]
                kept[at] = block.ends[found] > acked[at]
                # What came before one that starts at the acknowledged position, or below it, is acknowledged.
                before[at] = np.where(block.starts[found] > acked[at], block.before[found], NONE)
            if not kept.all():
                places, entries, before = places[kept], entries[kept], before[kept]
                if not len(entries):
                    return
            yield places, entries
            entries = before

    def _located(self, entries: Ints) -> Iterator[tuple[Ints, Block, Ints]]:
        """Groups entries by block: indices into `entries`, the block, places in it (beyond it where not there)."""
        if not self._firsts or not len(entries):
            return
        lowest, highest = int(entries.min()), int(entries.max())
        number = bisect_right(self._firsts, lowest) - 1
        if number >= 0 and bisect_right(self._firsts, highest) - 1 == number:
            yield counting(len(entries)), self._blocks[number], self._blocks[number].places(entries)
            return
        numbers = np.searchsorted(np.asarray(self._firsts), entries, side="right") - 1
        order = np.argsort(numbers, kind="stable")
        found = numbers[order]
        begins = [0, *(np.flatnonzero(found[1:] != found[:-1]) + 1).tolist()]
        for begin, end in zip(begins, [*begins[1:], len(order)], strict=True):
            at, number = order[begin:end], found.item(begin)
            if number >= 0:
                yield at, self._blocks[number], self._blocks[number].places(entries[at])

    def _reply(self, entry: int) -> Reply:
        block = self._blocks[bisect_right(self._firsts, entry) - 1]
        place = int(block.places(np.asarray([entry]))[0])
        lengths, outputs = self.views(entry)
        return Reply(int(block.starts[place]), lengths.total, int(block.digested()[place]), outputs)

    def _alive(self, block: Block) -> Bools:
        rows = block.rows
        return np.asarray((block.ends > self.acked[rows]) & (block.entries >= self._oldest[rows]))

    def _living(self, blocks: Sequence[Block]) -> Iterator[Block]:
        """What is alive of some blocks.

        Where sessions step by themselves there are many blocks of one reply each, so all are compared at once.
        """
        if not blocks:
            return
        entries, rows, ends = (
            np.concatenate(columns)
            for columns in zip(*((block.entries, block.rows, block.ends) for block in blocks), strict=True)
        )
        alive = (ends > self.acked[rows]) & (entries >= self._oldest[rows])
        sizes = np.asarray([len(block.entries) for block in blocks])
        starts = np.cumsum(sizes) - sizes
        counts = np.add.reduceat(alive, starts, dtype=np.int64)
        some = np.flatnonzero(counts)
        whole = counts[some] == sizes[some]
        for number, is_whole in zip(some.tolist(), whole.tolist(), strict=True):
            block, start = blocks[number], starts[number]
            yield block if is_whole else block.take(np.flatnonzero(alive[start : start + sizes[number]]))

    def _sweep(self) -> None:
        """Lets go of what nobody needs: of all young blocks, and of as many survivors of earlier sweeps."""
        old, young = self._blocks[: self._survivors], self._blocks[self._survivors :]
        start = end = self._next_survivor
        seen = 0
        while end < len(old) and seen < 2 * self._young:
            seen += len(old[end].entries)
            end += 1
        swept, joined = self._swept(old[start:end]), self._swept(young)
        survivors = old[:start] + swept + old[end:] + joined
        self._next_survivor = start + len(swept) if end < len(old) else 0
        self._blocks, self._survivors = survivors, len(survivors)
        self._firsts = [int(block.entries[0]) for block in survivors]
        self._young = self._young_bytes = 0
        self.nbytes = sum([block.nbytes for block in survivors])

    def _swept(self, blocks: Sequence[Block]) -> list[Block]:
        """What is alive of neighbouring blocks, in fewer of them."""
        joined, group, size, shapes = list[Block](), list[Block](), 0, None
        for block in self._living(blocks):
            size += len(block.entries)
            if group and (size > _BLOCK_ENTRIES or block.shapes != shapes):
                joined.append(join(group))
                group, size = [], len(block.entries)
            if not group:
                shapes = block.shapes
            group.append(block)
        return [*joined, join(group)] if group else joined
