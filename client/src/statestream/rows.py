"""Rows: which sessions of a pool are meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from statestream.contract.tensors import Ints, Mask
from statestream.wanted import listed

Rows: TypeAlias = Sequence[int] | Sequence[str] | Ints | Mask
"""Which sessions of a pool: their places, their ids, or a mask over all."""


def chosen(rows: Rows, ids: Sequence[str]) -> Ints:
    """The numbers of some of a pool's rows; negative ones count from the end.

    Raises:
        IndexError: There is no such row.
        ValueError: These are no rows.
    """
    index, count = np.asarray(rows), len(ids)
    if index.ndim == 1 and index.size and all(isinstance(row, str) for row in index):
        places = {id: place for place, id in enumerate(ids)}
        unknown = [str(row) for row in index if row not in places]
        if unknown:
            raise IndexError(f"rows has {listed(unknown)}; the pool has no such sessions, it has {listed(ids)}")
        return np.array([places[row] for row in index], np.int64)
    if index.dtype == np.bool_:
        if index.shape != (count,):
            raise ValueError(f"rows is a mask of shape {list(index.shape)}; expected [{count}], an entry for each row")
        return np.flatnonzero(index)
    if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
        raise ValueError(
            f"rows is of dtype {index.dtype} and shape {list(index.shape)}; expected a list of numbers, places in"
            " pool.ids, or of ids, or a mask"
        )
    outside = index[(index >= count) | (index < -count)]
    if len(outside):
        raise IndexError(f"rows has {outside[0]}; the pool has {count} rows, the first is 0")
    return index.astype(np.int64)
