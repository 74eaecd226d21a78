"""Rows that one wrapped graph gathers, steps and commits in place; see fusion.py. On the CPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import onnx

from statestream import signature as signatures
from statestream.signature import Signature
from statestream_server.arrays import Array, Bools, Ints
from statestream_server.models.checks import InputCheck
from statestream_server.models.fusion import fuse
from statestream_server.models.rows import SCRATCH_ROW, columns_of, max_slice_of, start_values
from statestream_server.models.runtime import Binding, Device, Graph
from statestream_server.models.slab import Slab


class FusedRows:
    """A `Rows` whose `step` is one run of one graph, at a cost that does not grow with the capacity."""

    def __init__(self, model: onnx.ModelProto, signature: Signature, device: Device, *, check_inputs: bool) -> None:
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
        self._input_check = InputCheck(signature, wanted=check_inputs)
        self.max_slice = max_slice_of(signature)
        wrapped, self._names = fuse(model, signature)
        self._binding = Binding(Graph(wrapped.SerializeToString(), device))
        self._outputs = [
            (signatures.numpy_dtype(spec.dtype), signatures.step_shape(spec)) for spec in signature.outputs
        ]
        self._lock = threading.Lock()

    @property
    def capacity(self) -> int:
        """Rows there are."""
        return self._slab.capacity

    def grow(self, capacity: int) -> None:
        """Makes room; waits for a `step` that runs in another thread."""
        with self._lock:
            self._slab.grow(capacity)
            for slab, array in zip(self._names.slabs, self._slab.arrays, strict=True):
                items = array.reshape(self._slab.capacity * slab.parts, *slab.item)
                self._binding.fix(slab.before, slab.after, items)

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
        count, steps = inputs[0].shape[:2]
        outputs = [np.empty((count, steps, *shape), dtype) for dtype, shape in self._outputs]
        bad = np.zeros(count, np.bool_)
        refused = self._input_check(inputs)
        if refused is not None:
            target = np.where(refused, SCRATCH_ROW, target)
        names, binding = self._names, self._binding
        with self._lock:
            binding.give(names.source, source)
            binding.give(names.target, target)
            for name, value in zip(names.inputs, inputs, strict=True):
                binding.give(name, value)
            for name, value in zip(names.outputs, outputs, strict=True):
                binding.take(name, value)
            if names.bad:
                binding.take(names.bad, bad[np.newaxis])
            binding.run()
        return outputs, bad if refused is None else bad | refused
