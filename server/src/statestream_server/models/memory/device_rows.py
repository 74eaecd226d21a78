"""Rows that stay on a device: one wrapped graph gathers, steps and commits them there; see fused_rows.

With every step only row numbers and inputs go to the device, and only outputs and the mask of bad rows come back.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from statestream.contract.signature import Signature
from statestream_server.arrays import Array, Bools, Ints
from statestream_server.models.graphs.refused import FusionError
from statestream_server.models.graphs.row_graphs import Item
from statestream_server.models.graphs.runtime import Binding, Device
from statestream_server.models.memory.contexts import Contexts, context_of
from statestream_server.models.memory.device_slab import DeviceSlab
from statestream_server.models.memory.fused_rows import StepGraph
from statestream_server.models.rows import columns_of, max_slice_of, start_values


class DeviceRows:
    """A `Rows` in the memory of a device. What is read of a row travels when it is read."""

    row_by_row = False

    def __init__(
        self,
        model: onnx.ModelProto,
        signature: Signature,
        device: Device,
        *,
        check_inputs: bool | Mapping[str, str],
        in_place: bool = True,
    ) -> None:
        """Rows for a graph as its author wrote it; capacity is 0 until `grow`.

        Args:
            model: The graph, weights included.
            signature: Its signature, which fits it.
            device: What it runs on, and where the rows are.
            check_inputs: Whether inputs are held to the check of the states; see `InputCheck`.
            in_place: Whether a run writes the memory that it reads; see `DeviceSlab`.

        Raises:
            FusionError: The graph cannot be wrapped, or the device cannot gather or scatter its rows.
            GraphError: ONNX Runtime does not take the wrapped graph.
            MemoryError: The device has no memory left.
        """
        self.columns = columns_of(signature)
        self.max_slice = max_slice_of(signature)
        context = context_of(model, signature)
        self.contexts = Contexts(context) if context else None
        self._graph = StepGraph(model, signature, device, check_inputs=check_inputs, context=context)
        strangers = self._graph.strangers()
        if strangers:
            raise FusionError(f"{device.name} leaves {len(strangers)} of the nodes that touch rows to the CPU")
        self._own = [place for place in range(len(self.columns)) if place not in context]
        self._context = sorted(context)
        if not self._own:
            raise FusionError("a step writes nothing: all that it has is an encoder's output")
        start, slabs = start_values(signature), self._graph.slabs

        def slab(places: Sequence[int]) -> DeviceSlab:
            columns = [self.columns[place] for place in places]
            items = [Item.of(slabs[place], self.columns[place].dtype) for place in places]
            return DeviceSlab(columns, [start[place] for place in places], items, device, in_place=in_place)

        self._slab = slab(self._own)
        self._shared = slab(self._context) if context else None
        self.row_nbytes = sum(column.nbytes for column in self.columns)
        self._in_place = in_place
        self._running = threading.Lock()
        # Rows that a step does not touch may move while it runs, but not while it copies the whole slab.
        self._moving = threading.Lock() if in_place else self._running

    @property
    def capacity(self) -> int:
        """Rows there are."""
        return self._slab.capacity

    def grow(self, capacity: int) -> None:
        """Makes room, by a copy on the device; waits for a `step` that runs in another thread."""
        with self._running:
            self._graph.unbind()
            self._slab.grow(capacity)
            if self._shared is not None and self.contexts is not None:
                self._shared.grow(capacity)
                self._shared.reset(np.zeros(1, np.int64))
                self.contexts.grow(capacity)

    def reset(self, rows: Ints) -> None:
        """Sets rows to the start values."""
        with self._moving:
            self._slab.reset(rows)
            self.free(rows)

    def read(self, rows: Ints) -> list[Array]:
        """Copies of rows."""
        with self._moving:
            found = dict(zip(self._own, self._slab.read(rows), strict=True))
            if self._shared is not None and self.contexts is not None:
                found |= zip(self._context, self._shared.read(self.contexts.of(rows)), strict=True)
            return [found[place] for place in range(len(self.columns))]

    def write(self, rows: Ints, values: Sequence[Array]) -> None:
        """Sets rows to values."""
        with self._moving:
            self._slab.write(rows, [values[place] for place in self._own])
            if self._shared is not None and self.contexts is not None:
                self._shared.write(self.contexts.fresh(rows), [values[place] for place in self._context])

    def copy(self, source: Ints, target: Ints) -> None:
        """Copies rows to rows."""
        with self._moving:
            self._slab.copy(source, target)
            if self.contexts is not None:
                self.contexts.share(source, target)

    def free(self, rows: Ints) -> None:
        """Has rows let go of what they share."""
        if self.contexts is not None:
            self.contexts.drop(rows)

    def step(self, source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        """One run of the wrapped graph; see `Rows.step`."""
        with self._running:
            slots = None if self.contexts is None else self.contexts.of(source)
            outputs, bad = self._graph.step(source, target, inputs, self._bind, slots)
            if self.contexts is not None and not np.array_equal(source, target):
                self.contexts.share(source[~bad], target[~bad])
            self._slab.turn()
            if not self._in_place:
                self._graph.unbind()
        return outputs, bad

    def _bind(self, binding: Binding) -> None:
        slabs = self._graph.slabs
        self._slab.bind(binding, [(slabs[place].before, slabs[place].after) for place in self._own])
        if self._shared is not None:
            self._shared.hold(binding, [slabs[place].before for place in self._context])
