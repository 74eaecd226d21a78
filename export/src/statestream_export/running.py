"""A graph in ONNX Runtime, as the gate and recipes run it: one thread, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from statestream_export.errors import ExportError, GateError
from statestream_export.interface import Interface

Array = np.ndarray


class Graph:
    """A graph that takes inputs and then states, and gives outputs and then new states, in the interface's order."""

    def __init__(self, model: onnx.ModelProto, interface: Interface) -> None:
        """Loads it.

        Raises:
            ExportError: onnxruntime is missing. `GateError`: it refuses the graph.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise ExportError("the gate needs onnxruntime; install it: pip install onnxruntime") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4  # what fails is raised; what warns is compared
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise GateError(f"ONNX Runtime cannot load the graph; nothing was written: {error}") from error
        self.taken = [port.name for port in (*interface.inputs, *interface.states)]

    def __call__(self, values: Sequence[Array], batch: int, length: int) -> list[Array]:
        """One run; batch and length are for the message.

        Raises:
            GateError: It does not run.
        """
        try:
            return [np.asarray(value) for value in self._session.run(None, dict(zip(self.taken, values, strict=True)))]
        except Exception as error:
            raise GateError(
                f"the graph does not run at batch {batch}, {length} steps; nothing was written: {error}",
                batch=batch,
                length=length,
            ) from error


class GraphModule(nn.Module):
    """A graph in the place of the module that it was made from: tensors in, a tensor or a tuple of them out.

    Attributes:
        runs: How often it was called.
    """

    def __init__(self, model: onnx.ModelProto, interface: Interface) -> None:
        super().__init__()
        self._graph = Graph(model, interface)
        self.runs = 0

    def forward(self, *values: Tensor) -> Tensor | tuple[Tensor, ...]:
        """One run, without gradients.

        Raises:
            TypeError: There are not as many tensors as the graph takes.
        """
        if len(values) != len(self._graph.taken):
            raise TypeError(f"the graph takes {', '.join(self._graph.taken)}; {len(values)} tensors came")
        self.runs += 1
        given = self._graph([value.detach().numpy() for value in values], len(values[0]), 1)
        found = tuple(torch.from_numpy(value) for value in given)
        return found[0] if len(found) == 1 else found
