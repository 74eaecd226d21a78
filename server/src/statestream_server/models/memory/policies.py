"""Rows that run batches otherwise than they come: a batch of one as two, every one as a power of two, or row by row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from statestream_server.arrays import Array, Bools, Ints
from statestream_server.models.rows import SCRATCH_ROW, Column, Rows


class Wrapped:
    """Rows that leave everything but `step` to other rows."""

    row_by_row = False

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.grow, self.reset, self.read, self.write, self.copy, self.free = (
            rows.grow,
            rows.reset,
            rows.read,
            rows.write,
            rows.copy,
            rows.free,
        )

    @property
    def capacity(self) -> int:
        """Rows there are."""
        return self._rows.capacity

    @property
    def columns(self) -> Sequence[Column]:
        """The arrays."""
        return self._rows.columns

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row."""
        return self._rows.row_nbytes

    @property
    def max_slice(self) -> int:
        """The most steps of one `step`."""
        return self._rows.max_slice


class PaddedRows(Wrapped):
    """Runs a batch of one as two: the row twice, the second result into the scratch row."""

    def step(self, source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        """One run; see `Rows.step`."""
        if len(source) != 1:
            return self._rows.step(source, target, inputs)
        outputs, bad = self._rows.step(
            np.repeat(source, 2),
            np.append(target, SCRATCH_ROW),
            [np.repeat(value, 2, axis=0) for value in inputs],
        )
        return [value[:1] for value in outputs], bad[:1]


class BucketedRows(Wrapped):
    """Runs every batch with a power of two of rows: its first row again and again, those results to the scratch row.

    A device prepares for every shape that it meets; so it meets few.
    """

    def step(self, source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        """One run; see `Rows.step`."""
        count = len(source)
        more = bucket(count) - count
        if not more:
            return self._rows.step(source, target, inputs)
        outputs, bad = self._rows.step(
            np.append(source, np.full(more, source[0])),
            np.append(target, np.full(more, SCRATCH_ROW)),
            [np.concatenate([value, np.broadcast_to(value[:1], (more, *value.shape[1:]))]) for value in inputs],
        )
        return [value[:count] for value in outputs], bad[:count]


def bucket(count: int) -> int:
    """The rows that `BucketedRows` runs `count` of them with."""
    return 1 << (count - 1).bit_length()


class SerialisedRows(Wrapped):
    """Runs every row alone; with `single`, every step too."""

    row_by_row = True

    def __init__(self, rows: Rows, *, single: bool) -> None:
        """Wraps rows."""
        super().__init__(rows)
        self._single = single

    @property
    def max_slice(self) -> int:
        """The most steps of one `step`."""
        return 1 if self._single else self._rows.max_slice

    def step(self, source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        """As many runs as rows; see `Rows.step`."""
        results = [
            self._rows.step(source[i : i + 1], target[i : i + 1], [value[i : i + 1] for value in inputs])
            for i in range(len(source))
        ]
        outputs = [np.concatenate(parts) for parts in zip(*(outputs for outputs, _ in results), strict=True)]
        return outputs, np.concatenate([bad for _, bad in results])
