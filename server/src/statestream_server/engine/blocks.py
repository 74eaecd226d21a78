"""A block: replies that one batch gave, kept as the arrays in which they came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from statestream_server.arrays import Array, Ints, Positions
from statestream_server.engine import digests
from statestream_server.engine.lengths import Lengths


@dataclass(slots=True)
class Block:
    """Replies that came together.

    Attributes:
        entries: [n] their numbers, ascending.
        rows: [n] their rows.
        before: [n] the entry before each on its row.
        starts, ends: [n] from where to where each goes.
        lengths: The steps of each; they are packed in this order.
        outputs: One packed array for every output.
        inputs: One packed array for every input, until the digests are known.
        digests: [n] the digests of the inputs, once they were asked for.
    """

    entries: Ints
    rows: Ints
    before: Ints
    starts: Positions
    ends: Positions
    lengths: Lengths
    outputs: Sequence[Array]
    inputs: Sequence[Array]
    digests: Positions | None

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum([array.nbytes for array in (*self.outputs, *self.inputs)])

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of one step of every array; a model may leave it to its callers."""
        return [array.shape[1:] for array in (*self.outputs, *self.inputs)]

    def digested(self) -> Positions:
        """The digests; the inputs are not needed any more."""
        if self.digests is None:
            self.digests, self.inputs = digests.of_chunks(self.lengths, self.inputs), ()
        return self.digests

    def places(self, entries: Ints) -> Ints:
        """Where entries are in it, or would be."""
        first = int(self.entries[0])
        if int(self.entries[-1]) - first + 1 == len(self.entries):
            return entries - first
        return np.searchsorted(self.entries, entries)

    def take(self, places: Ints) -> Block:
        """Some of the replies (ascending)."""
        return Block(
            self.entries[places],
            self.rows[places],
            self.before[places],
            self.starts[places],
            self.ends[places],
            self.lengths.take(places),
            self.lengths.pack(self.outputs, places),
            self.lengths.pack(self.inputs, places),
            None if self.digests is None else self.digests[places],
        )


def join(blocks: Sequence[Block]) -> Block:
    """Neighbouring blocks whose arrays are alike as one, which keeps digests instead of inputs."""
    joined = blocks[0]
    if len(blocks) > 1:
        columns = (
            (block.entries, block.rows, block.before, block.starts, block.ends, block.lengths.column)
            for block in blocks
        )
        entries, rows, before, starts, ends, lengths = map(np.concatenate, zip(*columns, strict=True))
        joined = Block(
            entries,
            rows,
            before,
            starts,
            ends,
            Lengths.of(lengths),
            [np.concatenate(arrays) for arrays in zip(*(block.outputs for block in blocks), strict=True)],
            [np.concatenate(arrays) for arrays in zip(*(block.inputs for block in blocks), strict=True)],
            None if joined.digests is None else np.concatenate([block.digested() for block in blocks]),
        )
    joined.digested()
    return joined
