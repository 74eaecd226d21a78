"""Batches: the records of one model's sessions that are saved together, as columns. No store lives here.

A store that writes columns needs no object for each record; for any other each is a `Record` like all others, made
when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from statestream_server.stores.base import Key, Record

Numbers = npt.NDArray[np.uint64]


class Blobs(Sequence[bytes]):
    """Byte strings of one length, as one."""

    def __init__(self, data: bytes, size: int) -> None:
        """Those of `size` bytes each, at least one, that lie one behind the other in `data`."""
        self.data = data
        self.size = size

    def __len__(self) -> int:
        return len(self.data) // self.size

    @overload
    def __getitem__(self, place: int) -> bytes: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[bytes]: ...

    def __getitem__(self, place: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(place, slice):
            return [*self][place]
        start = range(len(self))[place] * self.size
        return self.data[start : start + self.size]

    def __iter__(self) -> Iterator[bytes]:
        data, size = self.data, self.size
        return iter([data[start : start + size] for start in range(0, len(data), size)])


@dataclass(frozen=True, eq=False)
class Batch(Sequence[Record]):
    """Live records of one version of a model, of distinct sessions.

    Attributes:
        tenants, ids: [n] whose they are.
        model, version: Of all of them.
        owner: The process that saves them.
        epochs, positions, incarnations: [n] uint64.
        writers: [n] 16 bytes each.
        ephemeral: [n] bool.
        blobs: [n] their blobs.
    """

    tenants: Sequence[str]
    ids: Sequence[str]
    model: str
    version: int
    owner: str
    epochs: Numbers
    positions: Numbers
    incarnations: Numbers
    writers: npt.NDArray[np.void]
    ephemeral: npt.NDArray[np.bool_]
    blobs: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, place: int) -> Record: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Record]: ...

    def __getitem__(self, place: int | slice) -> Record | Sequence[Record]:
        return self._records[place]

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the blobs."""
        return len(self.blobs.data) if isinstance(self.blobs, Blobs) else sum(map(len, self.blobs))

    @cached_property
    def _records(self) -> list[Record]:
        keys = map(Key._make, zip(self.tenants, repeat(self.model), self.ids, strict=False))
        columns: tuple[Any, ...] = (
            keys,
            repeat(self.version),
            self.epochs.tolist(),
            self.positions.tolist(),
            self.writers.tolist(),
            self.incarnations.tolist(),
            self.ephemeral.tolist(),
            self.blobs,
            repeat(0.0),
            repeat(self.owner),
            repeat(0),
            repeat(True),
        )
        return [*map(Record._make, zip(*columns, strict=False))]


def joined(batches: Sequence[Batch]) -> Sequence[Record]:
    """Batches as one: of one model, version and owner where there are several."""
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    sizes = {each.blobs.size if isinstance(each.blobs, Blobs) else 0 for each in batches if len(each)}
    blobs: Sequence[bytes]
    if len(sizes) == 1 and 0 not in sizes:
        blobs = Blobs(b"".join([each.blobs.data for each in batches if isinstance(each.blobs, Blobs)]), *sizes)
    else:
        blobs = [blob for each in batches for blob in each.blobs]
    return Batch(
        [tenant for each in batches for tenant in each.tenants],
        [session for each in batches for session in each.ids],
        first.model,
        first.version,
        first.owner,
        np.concatenate([each.epochs for each in batches]),
        np.concatenate([each.positions for each in batches]),
        np.concatenate([each.incarnations for each in batches]),
        np.concatenate([each.writers for each in batches]),
        np.concatenate([each.ephemeral for each in batches]),
        blobs,
    )
