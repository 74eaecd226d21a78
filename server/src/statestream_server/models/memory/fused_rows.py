"""Rows that one wrapped graph gathers, steps and commits in place, on the CPU; see step_graph.py."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import onnx

from statestream.contract.signature import Signature
from statestream_server.arrays import Array, Bools, Ints
from statestream_server.models.graphs.runtime import Binding, Device
from statestream_server.models.memory.slab import Slab
from statestream_server.models.memory.step_graph import StepGraph
from statestream_server.models.rows import columns_of, max_slice_of, start_values


class FusedRows:
    """A `Rows` whose `step` is one run of one graph, at a cost that does not grow with the capacity."""

    row_by_row = False

    def __init__(
        self, model: onnx.ModelProto, signature: Signature, device: Device, *, check_inputs: bool | Mapping[str, str]
    ) -> None:
        """Rows for a graph as its author wrote it; capacity is 0 until `grow`.

        Args:
            model: The graph, weights included.
            signature: Its signature, which fits it.
            device: What it runs on; the CPU.
            check_inputs: Whether inputs are held to the check of the states; see `InputCheck`.

        Raises:
            FusionError: The graph cannot be wrapped.
            GraphError: ONNX Runtime does not take the wrapped graph.
        """
        self._slab = Slab(columns_of(signature), start_values(signature))
        self.columns = self._slab.columns
        self.row_nbytes = self._slab.row_nbytes
        self.max_slice = max_slice_of(signature)
        self._graph = StepGraph(model, signature, device, check_inputs=check_inputs)
        self._lock = threading.Lock()

    @property
    def capacity(self) -> int:
        """Rows there are."""
        return self._slab.capacity

    def grow(self, capacity: int) -> None:
        """Makes room; waits for a `step` that runs in another thread."""
        with self._lock:
            self._graph.unbind()
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

    def step(self, source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        """One run of the wrapped graph; see `Rows.step`."""
        with self._lock:
            return self._graph.step(source, target, inputs, self._bind)

    def _bind(self, binding: Binding) -> None:
        for slab, array in zip(self._graph.slabs, self._slab.arrays, strict=True):
            binding.fix(slab.before, slab.after, array.reshape(self._slab.capacity * slab.parts, *slab.item))
