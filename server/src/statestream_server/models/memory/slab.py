"""The slab: the arrays that hold rows in this process's memory, and how they grow without being copied; rows in one."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Sequence

import numpy as np

from statestream.contract.signature import Signature
from statestream_server.arrays import Array, Ints
from statestream_server.models.rows import Column, columns_of, max_slice_of, start_values


class Slab:
    """For every column an array [capacity, *shape] in memory that the operating system gives on first touch."""

    def __init__(self, columns: Sequence[Column], start: Sequence[Array]) -> None:
        """An empty slab.

        Args:
            columns: The arrays, without the row axis.
            start: One row at position 0, an array of each column's shape.
        """
        self.columns = tuple(columns)
        self.row_nbytes = sum(column.nbytes for column in columns)
        self.capacity = 0
        self.arrays: list[Array] = []
        """[capacity, *shape] each. Do not keep them: `grow` moves them."""
        self._start = list(start)
        self._memory: list[_Memory] = []

    def grow(self, capacity: int) -> None:
        """Makes room for `capacity` rows; what is there stays. Nobody may hold or use `arrays` meanwhile.

        Raises:
            MemoryError: There is not that much memory; the slab stays as it is.
        """
        if capacity <= self.capacity:
            return
        if not self._memory:
            self._memory = [_Memory() for _ in self.columns]
        self.arrays = []
        try:
            for memory, column in zip(self._memory, self.columns, strict=True):
                memory.grow(capacity * column.nbytes)
            self.capacity = capacity
        finally:
            self.arrays = [
                memory.array(column, self.capacity) for memory, column in zip(self._memory, self.columns, strict=True)
            ]

    def reset(self, rows: Ints) -> None:
        """Sets rows [n] to the start values."""
        for array, start in zip(self.arrays, self._start, strict=True):
            array[rows] = start

    def read(self, rows: Ints) -> list[Array]:
        """Copies of rows [n], for every column [n, *shape]."""
        return [array.take(rows, axis=0) for array in self.arrays]

    def write(self, rows: Ints, values: Sequence[Array]) -> None:
        """Sets rows [n] to values, for every column [n, *shape]."""
        for array, value in zip(self.arrays, values, strict=True):
            array[rows] = value

    def copy(self, source: Ints, target: Ints) -> None:
        """Copies rows source [n] to rows target [n]."""
        for array in self.arrays:
            array[target] = array.take(source, axis=0)


class SlabRows:
    """What every `Rows` in a slab does, however it steps; `step` and `grow` hold the lock."""

    row_by_row = False

    def __init__(self, signature: Signature) -> None:
        """Rows of a signature; capacity is 0 until `grow`."""
        self._slab = Slab(columns_of(signature), start_values(signature))
        self._lock = threading.Lock()
        self.columns = self._slab.columns
        self.row_nbytes = self._slab.row_nbytes
        self.max_slice = max_slice_of(signature)

    @property
    def capacity(self) -> int:
        """Rows there are."""
        return self._slab.capacity

    def grow(self, capacity: int) -> None:
        """Makes room; waits for a `step` that runs in another thread."""
        with self._lock:
            self._slab.grow(capacity)

    def reset(self, rows: Ints) -> None:
        """Sets rows to the start values."""
        self._slab.reset(rows)

    def read(self, rows: Ints) -> list[Array]:
        """Copies of rows."""
        return self._slab.read(rows)

    def write(self, rows: Ints, values: Sequence[Array]) -> None:
        """Sets rows to values."""
        self._slab.write(rows, values)

    def copy(self, source: Ints, target: Ints) -> None:
        """Copies rows to rows."""
        self._slab.copy(source, target)


class _Memory:
    """Private pages that grow by moving page tables (Linux), elsewhere by a copy."""

    def __init__(self) -> None:
        self._pages: mmap.mmap | None = None

    def grow(self, nbytes: int) -> None:
        size = -(-max(nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        if self._pages is not None and size <= len(self._pages):
            return
        try:
            self._pages = _map(size) if self._pages is None else _resized(self._pages, size)
        except OSError as error:
            raise MemoryError(f"the system does not give {size} bytes for rows: {error}") from error

    def array(self, column: Column, capacity: int) -> Array:
        if self._pages is None:
            return np.empty((0, *column.shape), column.dtype)
        count = capacity * int(np.prod(column.shape, dtype=np.int64))
        return np.frombuffer(self._pages, column.dtype, count).reshape(capacity, *column.shape)


def _map(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # A batch takes rows from all over the slab: huge pages save it a page-table walk for most of them.
        with contextlib.suppress(OSError):  # A kernel may be built without them.
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def _resized(pages: mmap.mmap, size: int) -> mmap.mmap:
    try:
        pages.resize(size)
    except SystemError:  # This system cannot move pages.
        fresh = _map(size)
        fresh[: len(pages)] = pages[:]
        pages.close()
        return fresh
    return pages
