"""A graph in ONNX Runtime, as the gate and recipes run it: one thread, on the CPU, in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import pickle
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from statestream_export.errors import ExportError, GateError
from statestream_export.interface import Interface

Array = np.ndarray


class Graph:
    """A graph that takes inputs and then states, and gives outputs and then new states, in the interface's order.

    It runs in a process of its own: some graphs end the process that runs them. `close` ends it.
    """

    def __init__(self, model: onnx.ModelProto, interface: Interface) -> None:
        """Loads it.

        Raises:
            ExportError: onnxruntime is missing. `GateError`: it refuses the graph, or dies of it.
        """
        if importlib.util.find_spec("onnxruntime") is None:
            raise ExportError("the gate needs onnxruntime; install it: pip install onnxruntime")
        self.taken = [port.name for port in (*interface.inputs, *interface.states)]
        self._half = _odd_layers(model)
        script = Path(__file__).with_name("trial.py")
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.close = weakref.finalize(self, _end, self._process)
        try:
            self._ask(model.SerializeToString())
        except _GraphError as error:
            self.close()
            raise GateError(
                f"ONNX Runtime cannot load the graph; nothing was written: {error}"
                f"{self._half or '. Write in forward otherwise what it names, or in float32'}"
            ) from error

    def __enter__(self) -> Graph:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Ends its process."""
        self.close()

    def __call__(self, values: Sequence[Array], batch: int, length: int) -> list[Array]:
        """One run; batch and length are for the message.

        Raises:
            GateError: It does not run, or ends its process.
        """
        try:
            found = self._ask(dict(zip(self.taken, values, strict=True)))
        except _GraphError as error:
            raise GateError(
                f"the graph does not run at batch {batch}, {length} steps; nothing was written: {error}"
                f"{self._half or _ADVICE}",
                batch=batch,
                length=length,
            ) from error
        return [np.asarray(value) for value in found]

    def _ask(self, what: Any) -> list[Array]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump(what, self._process.stdin, protocol=5)
            self._process.stdin.flush()
            found = pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            self._process.kill()
            raise _GraphError(f"ONNX Runtime {_ended(self._process.wait())} on it") from error
        except BaseException:
            self._process.kill()  # Interrupted in the midst of an answer.
            raise
        if isinstance(found, str):
            raise _GraphError(found)
        return list(found)


FROZEN = "frozen in forward"
"""Stands in messages where Python may have run what the graph was to hold."""
_ADVICE = (
    ". Is a length or a batch size frozen in forward (a Python loop over steps, int(x.shape[…]))? Use tensor"
    " operations, script the loop (torch.jit.script(module)), or export one step with time_axis=None"
)


class _GraphError(Exception):
    """What ONNX Runtime said."""


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    process.kill()
    process.wait()


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended its process with {code}"
    try:
        return f"ended its process by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended its process by signal {-code}"


def _odd_layers(model: onnx.ModelProto) -> str:
    """What to do about recurrent layers in another precision than single, where the graph has some."""
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("LSTM", "GRU", "RNN"):
            continue
        kind = kinds.get(node.input[1], onnx.TensorProto.FLOAT)
        if kind != onnx.TensorProto.FLOAT:
            name = onnx.helper.tensor_dtype_to_np_dtype(kind).name
            return (
                f". Its {node.op_type} layer is {name}, and ONNX Runtime runs those in float32 only: export"
                f" module.float() with float32 examples, or write the layer with nn.{node.op_type}Cell"
            )
    return ""


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
