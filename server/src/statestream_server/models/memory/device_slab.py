"""The slab on a device: rows in its memory, which only leave it when they are read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from statestream_server.arrays import Array, Ints
from statestream_server.models.graphs import row_graphs
from statestream_server.models.graphs.row_graphs import Item
from statestream_server.models.graphs.runtime import Binding, Device, Graph, Memory
from statestream_server.models.rows import Column

_CHUNK = 16 << 20
"""Bytes of rows that one run reads, writes or copies: what it takes of the device's memory besides the slab.

No more than 2²⁴ numbers then move at once: there are CUDA kernels that work out their extent in float32.
"""

_MOST_NUMBERS = 2**31 - 1
"""In one column: there are CUDA kernels that count in 32 bits, and what lies behind would be another row's."""


class DeviceSlab:
    """For every column an array of items [capacity × parts, *item] in the memory of a device.

    Rows are written in place where the device can do it: what a run takes in and what it gives out is one memory. Where
    it cannot, there are two of them; a run then copies the slab from one to the other, and they change places.

    For one caller at a time.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        start: Sequence[Array],
        items: Sequence[Item],
        device: Device,
        *,
        in_place: bool = True,
    ) -> None:
        """An empty slab.

        Args:
            columns: The arrays, without the row axis.
            start: One row at position 0, an array of each column's shape.
            items: How each column lies in memory.
            device: Where.
            in_place: Whether a run writes the memory that it reads; else there are two.

        Raises:
            GraphError: ONNX Runtime does not take the graphs that move rows.
            MemoryError: There is no memory for even one row.
        """
        self.columns = tuple(columns)
        self.row_nbytes = sum(column.nbytes for column in columns)
        self.capacity = 0
        self._items, self._device, self._in_place = tuple(items), device, in_place
        self._parts = sorted({item.parts for item in items})
        self._reading, self._writing, self._copying = (
            Binding(Graph(build(items).SerializeToString(), device))
            for build in (row_graphs.reading, row_graphs.writing, row_graphs.copying)
        )
        self._now: list[Memory] = []
        self._next: list[Memory] = []
        self._step = max(1, _CHUNK // max(1, self.row_nbytes))
        first, self._start = self._memories(1)
        self._write(first, self._start, np.zeros(1, np.int64), [value[np.newaxis] for value in start])

    def grow(self, capacity: int) -> None:
        """Makes room for `capacity` rows; what is there is copied, on the device, and stays.

        For that time the device has the old slab and the new one.

        Raises:
            MemoryError: There is not that much memory; the slab stays as it is.
        """
        if capacity <= self.capacity:
            return
        for column, item in zip(self.columns, self._items, strict=True):
            if capacity * item.parts * math.prod(item.shape) > _MOST_NUMBERS:
                raise MemoryError(
                    f"{capacity} rows of {column.name!r} would be more than the {_MOST_NUMBERS} numbers that a device"
                    " can tell apart"
                )
        now, following = self._memories(capacity)
        for rows in self._chunks(np.arange(self.capacity)):
            self._copy(self._now, rows, now, following, rows)
            if not self._in_place:
                now, following = following, now
        self._now, self._next, self.capacity = now, following, capacity

    def reset(self, rows: Ints) -> None:
        """Sets rows [n] to the start values."""
        for part in self._chunks(rows):
            self._copy(self._start, np.zeros_like(part), self._now, self._next, part)
            self.turn()

    def read(self, rows: Ints) -> list[Array]:
        """Copies of rows [n], for every column [n, *shape]."""
        results = [np.empty((len(rows), *column.shape), column.dtype) for column in self.columns]
        for start in range(0, len(rows), self._step):
            part = rows[start : start + self._step]
            held = self._give_rows(self._reading, part, None)
            for i, (item, memory, result) in enumerate(zip(self._items, self._now, results, strict=True)):
                place = result[start : start + self._step].reshape(-1, *item.shape)
                self._reading.hold(row_graphs.before(i), memory)
                self._reading.take(row_graphs.values(i), place)
            self._reading.run()
            self._reading.clear()
            del held
        return results

    def write(self, rows: Ints, values: Sequence[Array]) -> None:
        """Sets rows [n] to values, for every column [n, *shape]."""
        for start in range(0, len(rows), self._step):
            end = start + self._step
            self._write(self._now, self._next, rows[start:end], [value[start:end] for value in values])
            self.turn()

    def copy(self, source: Ints, target: Ints) -> None:
        """Copies rows source [n] to rows target [n]; no target is a source."""
        for start in range(0, len(source), self._step):
            end = start + self._step
            self._copy(self._now, source[start:end], self._now, self._next, target[start:end])
            self.turn()

    def bind(self, binding: Binding, names: Sequence[tuple[str, str]]) -> None:
        """Binds the columns to a graph's inputs and outputs, given as names (before, after). `turn` after its run."""
        for (before, after), now, following in zip(names, self._now, self._next, strict=True):
            binding.hold(before, now)
            binding.fill(after, following)

    def hold(self, binding: Binding, names: Sequence[str]) -> None:
        """Binds the columns to inputs of a graph that only reads them."""
        for name, now in zip(names, self._now, strict=True):
            binding.hold(name, now)

    def turn(self) -> None:
        """What was written last is the slab from now on."""
        self._now, self._next = self._next, self._now

    def _memories(self, capacity: int) -> tuple[list[Memory], list[Memory]]:
        """What a run reads and what it writes: one and the same, or two."""
        both = [
            [Memory(self._device, (capacity * item.parts, *item.shape), item.dtype) for item in self._items]
            for _ in range(1 if self._in_place else 2)
        ]
        return both[0], both[-1]

    def _chunks(self, rows: Ints) -> Iterator[Ints]:
        for start in range(0, len(rows), self._step):
            yield rows[start : start + self._step]

    def _write(self, now: list[Memory], following: list[Memory], rows: Ints, values: Sequence[Array]) -> None:
        held: list[Array] = self._give_rows(self._writing, None, rows)
        for i, (item, value) in enumerate(zip(self._items, values, strict=True)):
            held.append(np.asarray(value, item.dtype, order="C").reshape(-1, *item.shape))
            self._writing.give(row_graphs.values(i), held[-1])
            self._writing.hold(row_graphs.before(i), now[i])
            self._writing.fill(row_graphs.after(i), following[i])
        self._writing.run()
        self._writing.clear()

    def _copy(
        self, origin: list[Memory], source: Ints, now: list[Memory], following: list[Memory], target: Ints
    ) -> None:
        held = self._give_rows(self._copying, source, target)
        for i in range(len(self._items)):
            self._copying.hold(row_graphs.origin(i), origin[i])
            self._copying.hold(row_graphs.before(i), now[i])
            self._copying.fill(row_graphs.after(i), following[i])
        self._copying.run()
        self._copying.clear()
        del held

    def _give_rows(self, binding: Binding, source: Ints | None, target: Ints | None) -> list[Array]:
        """Binds rows as the numbers of their items; the caller holds what is returned until the run ended."""
        held: list[Array] = []
        for parts in self._parts:
            steps = np.arange(parts)
            if source is not None:
                held.append((source[:, np.newaxis] * parts + steps).reshape(-1))
                binding.give(row_graphs.source(parts), held[-1])
            if target is not None:
                held.append((target[:, np.newaxis] * parts + steps).reshape(-1, 1))
                binding.give(row_graphs.target(parts), held[-1])
        return held
