"""The step graph: a model's graph, wrapped and loaded, one run of which gathers rows, steps and commits them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from statestream import signature as signatures
from statestream.signature import Signature
from statestream_server.arrays import Array, Bools, Ints
from statestream_server.models.checks import InputCheck
from statestream_server.models.fusion import fuse
from statestream_server.models.rows import SCRATCH_ROW
from statestream_server.models.runtime import Binding, Device, Graph


class StepGraph:
    """A wrapped graph (see fusion.py) and what is bound to it. For one caller at a time.

    Attributes:
        slabs: What the graph calls the columns, in their order. Whoever has the slab binds it, by `binding`.
        binding: The graph with what is bound to it.
    """

    def __init__(self, model: onnx.ModelProto, signature: Signature, device: Device, *, check_inputs: bool) -> None:
        """Wraps and loads a graph as its author wrote it.

        Args:
            model: The graph, weights included; it stays as it is.
            signature: Its signature, which fits it.
            device: What it runs on.
            check_inputs: Whether inputs are held to the check of the states; see `InputCheck`.

        Raises:
            FusionError: The graph cannot be wrapped.
            GraphError: ONNX Runtime does not take the wrapped graph.
        """
        wrapped, self._names = fuse(model, signature)
        self.slabs = self._names.slabs
        columns = {slab.before for slab in self.slabs}
        self._touching = {node.name for node in wrapped.graph.node if columns & set(node.input)}
        self._graph = Graph(wrapped.SerializeToString(), device)
        self.binding = Binding(self._graph)
        self._input_check = InputCheck(signature, wanted=check_inputs)
        self._outputs = [
            (signatures.numpy_dtype(spec.dtype), signatures.step_shape(spec)) for spec in signature.outputs
        ]

    def strangers(self) -> list[str]:
        """Which of the nodes that touch rows run elsewhere than on the device, by name."""
        return self._graph.elsewhere(self._touching)

    def step(self, source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        """One run, on the slab that is bound; see `Rows.step`.

        Raises:
            GraphError: ONNX Runtime refused the arrays or failed.
        """
        count, steps = inputs[0].shape[:2]
        outputs = [np.empty((count, steps, *shape), dtype) for dtype, shape in self._outputs]
        bad = np.zeros(count, np.bool_)
        refused = self._input_check(inputs)
        if refused is not None:
            target = np.where(refused, SCRATCH_ROW, target)
        names, binding = self._names, self.binding
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
