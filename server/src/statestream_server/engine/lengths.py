"""Lengths: how many steps each of N chunks has, and where its steps are in arrays packed one after the other."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from statestream_server.arrays import Array, Ints, counting, every, span


class Lengths:
    """The steps of N chunks. Where all have the same, which is the rule, nothing is computed until it is asked for.

    Attributes:
        count: N.
        each: The steps of every chunk, 0 where they differ.
        total: The steps of all of them.
    """

    __slots__ = ("_column", "_offsets", "count", "each", "total")

    def __init__(self, count: int, each: int, column: Ints | None = None) -> None:
        """N chunks of `each` steps; with `each` 0 the lengths are in `column` [N]."""
        self.count = count
        self.each = each
        self.total = count * each if each else int(column.sum()) if column is not None else 0
        self._column = column
        self._offsets: Ints | None = None

    @classmethod
    def of(cls, column: Ints) -> Lengths:
        """The lengths [N] of chunks."""
        first = int(column[0]) if len(column) else 0
        return cls(len(column), first if first and every(column == first) else 0, column)

    @property
    def column(self) -> Ints:
        """[N] the steps of each chunk, not to be written to."""
        if self._column is None:
            self._column = np.full(self.count, self.each, np.int64)
            self._column.flags.writeable = False
        return self._column

    @property
    def offsets(self) -> Ints:
        """[N] where each chunk starts in a packed array."""
        if self._offsets is None:
            column = self.column
            self._offsets = counting(self.count) * self.each if self.each else np.cumsum(column) - column
        return self._offsets

    def take(self, places: Ints) -> Lengths:
        """The lengths of some chunks, in the order of `places` (distinct, ascending)."""
        if len(places) == self.count:
            return self
        return Lengths(len(places), self.each) if self.each else Lengths.of(self.column[places])

    def index(self, places: Ints) -> Ints:
        """Where the steps of some chunks (in any order) are in a packed array."""
        if self.each == 1:
            return places
        if self.each:
            return (places[:, None] * self.each + counting(self.each)).reshape(-1)
        steps = self.column[places]
        ends = np.cumsum(steps)
        return np.repeat(self.offsets[places] - (ends - steps), steps) + counting(int(ends[-1]) if len(ends) else 0)

    def cut(self, places: Ints) -> slice | Ints:
        """The same for chunks in ascending order; a slice where they lie together."""
        found = span(places)
        if self.each and isinstance(found, slice):
            return slice(found.start * self.each, found.stop * self.each)
        return self.index(places)

    def pack(self, arrays: Sequence[Array], places: Ints) -> list[Array]:
        """The steps of some chunks (distinct, ascending), packed; views where they lie together."""
        if len(places) == self.count:
            return list(arrays)
        cut = self.cut(places)
        return [array[cut] for array in arrays]


@functools.lru_cache(64)
def alike(count: int, each: int) -> Lengths:
    """The lengths of `count` chunks of `each` steps: one object for all that are so, as the same few come always."""
    return Lengths(count, each)
