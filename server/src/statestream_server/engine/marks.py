"""Marks: what stands among chunks and is none, and what some chunks and marks come with: cursors, a wish for scores."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from statestream_server.arrays import Array, Ints, Positions
from statestream_server.engine import digests
from statestream_server.engine.lengths import Lengths

RESET: Final = 1
"""A mark that returns its row to the start values."""
CURSOR: Final = 2
"""A mark that only carries a cursor."""

_ODD: Final = np.uint64(0xD6E8_FEB8_6659_FD93)
_SCORED: Final = np.uint64(0xA076_1D64_78BD_642F)


class Marks(NamedTuple):
    """What some chunks have beside their steps; most have nothing, and then there is no such object.

    Attributes:
        kinds: [n] uint8: 0 a chunk, RESET or CURSOR.
        cursors: [n] the cursors, b"" for none; no items where none has one.
        scored: Whether the chunks are to be scored.
    """

    kinds: Array
    cursors: Sequence[bytes]
    scored: bool = False

    def take(self, places: Ints) -> Marks:
        """Those of some places."""
        cursors = [self.cursors[place] for place in places.tolist()] if self.cursors else ()
        return Marks(self.kinds[places], cursors, self.scored)

    def digests(self, lengths: Lengths, inputs: Sequence[Array]) -> Positions:
        """[n] the digests of the chunks: those of their inputs, where they have nothing beside them."""
        found = digests.of_chunks(lengths, inputs if lengths.total else ())
        found = found + self.kinds.astype(np.uint64) * _ODD
        if self.scored:
            found = found + _SCORED
        for place, cursor in enumerate(self.cursors):
            if cursor:
                mixed = int.from_bytes(hashlib.blake2b(cursor, digest_size=8).digest(), "little")
                found[place] ^= np.uint64(mixed)
        return found

    def cursors_of(self, rows: Ints) -> list[tuple[int, bytes]]:
        """The rows [n] that have a cursor, and it."""
        return [(row, cursor) for row, cursor in zip(rows.tolist(), self.cursors, strict=True) if cursor]


def ends(starts: Positions, lengths: Lengths) -> Positions:
    """[n] where chunks and marks end: what has no steps is a mark, which takes one position."""
    if lengths.each:
        return starts + np.uint64(lengths.each)
    return starts + np.maximum(lengths.column, 1).astype(np.uint64)
