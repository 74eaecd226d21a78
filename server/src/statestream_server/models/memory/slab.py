"""The slab: the arrays that hold rows in this process's memory, and how they grow without being copied; rows in one."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from statestream.contract.signature import Signature
from statestream_server.arrays import Array, Ints
from statestream_server.models.memory.contexts import Contexts
from statestream_server.models.rows import Column, columns_of, max_slice_of, start_values


class Slab:
    """For every column an array [capacity, *shape] in memory that the operating system gives on first touch."""

    def __init__(self, columns: Sequence[Column], start: Sequence[Array], contexts: Contexts | None = None) -> None:
        """An empty slab.

        Args:
            columns: The arrays, without the row axis.
            start: One row at position 0, an array of each column's shape.
            contexts: Which of the columns rows share; None for none.
        """
        self.columns = tuple(columns)
        self.row_nbytes = sum(column.nbytes for column in columns)
        self.capacity = 0
        self.arrays: list[Array] = []
        """[capacity, *shape] each, of columns that rows share by slot. Do not keep them: `grow` moves them."""
        self.contexts = contexts
        self._shared = frozenset[int]() if contexts is None else contexts.columns
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
        if self.contexts is not None:
            self.contexts.grow(capacity)
            for place in self.contexts.columns:
                self.arrays[place][0] = self._start[place]

    def reset(self, rows: Ints) -> None:
        """Sets rows [n] to the start values."""
        if self.contexts is not None:
            self.contexts.drop(rows)
        for place, (array, start) in enumerate(zip(self.arrays, self._start, strict=True)):
            if place not in self._shared:
                array[rows] = start

    def read(self, rows: Ints) -> list[Array]:
        """Copies of rows [n], for every column [n, *shape]."""
        if self.contexts is None:
            return [array.take(rows, axis=0) for array in self.arrays]
        slots = self.contexts.of(rows)
        return [
            array.take(slots if place in self.contexts.columns else rows, axis=0)
            for place, array in enumerate(self.arrays)
        ]

    def write(self, rows: Ints, values: Sequence[Array]) -> None:
        """Sets rows [n] to values, for every column [n, *shape]."""
        slots = rows if self.contexts is None else self.contexts.fresh(rows)
        for place, (array, value) in enumerate(zip(self.arrays, values, strict=True)):
            array[slots if place in self._shared else rows] = value

    def commit(self, source: Ints, target: Ints, values: Mapping[int, Array]) -> None:
        """Sets rows target [n] to what a step made of rows source [n]: columns by place; others are shared."""
        self.share(source, target)
        for place, value in values.items():
            self.arrays[place][target] = value

    def share(self, source: Ints, target: Ints) -> None:
        """Gives rows target [n] what rows source [n] share, where they are others."""
        if self.contexts is not None and not np.array_equal(source, target):
            self.contexts.share(source, target)

    def copy(self, source: Ints, target: Ints) -> None:
        """Copies rows source [n] to rows target [n]."""
        self.share(source, target)
        for place, array in enumerate(self.arrays):
            if place not in self._shared:
                array[target] = array.take(source, axis=0)

    def free(self, rows: Ints) -> None:
        """Has rows [n] let go of what they share."""
        if self.contexts is not None:
            self.contexts.drop(rows)


class SlabRows:
    """What every `Rows` in a slab does, however it steps; `step` and `grow` hold the lock."""

    row_by_row = False

    def __init__(self, signature: Signature, context: Collection[int] = ()) -> None:
        """Rows of a signature; capacity is 0 until `grow`. Those columns that are `context` rows share."""
        self.contexts = Contexts(frozenset(context)) if context else None
        self._slab = Slab(columns_of(signature), start_values(signature), self.contexts)
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

    def free(self, rows: Ints) -> None:
        """Has rows let go of what they share."""
        self._slab.free(rows)


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
