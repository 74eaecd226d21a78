"""Hiding: which inputs' NaN or infinity becomes an ordinary number inside a graph, so that nobody would know.

ONNX Runtime's LSTM, GRU and RNN clamp what enters their gates, and whole numbers know no NaN. Which inputs get there as
NaN is tried: a model that deals with NaN itself, or whose infinities only meet its outputs, hides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import onnx
from onnx import inliner

from statestream.contract import signature as signatures
from statestream.contract.signature import TensorSpec
from statestream_server.arrays import Array
from statestream_server.models.graphs.operators import inner_graphs, uses
from statestream_server.models.graphs.runtime import Device, Graph, GraphError
from statestream_server.models.proof.draws import Draws
from statestream_server.models.rows import EVERYTHING, Axes, is_batched, is_checked, max_slice_of, start_values

_CLAMPING: Final = frozenset("LSTM GRU RNN QuantizeLinear DynamicQuantizeLinear DynamicQuantizeLSTM".split())
_POISONS: Final = ((np.nan, "nan"), (np.inf, "inf"), (-np.inf, "inf"))


def hidden(model: onnx.ModelProto, way: Draws, device: Device) -> dict[str, str]:
    """Finds the float inputs whose NaN or infinity would vanish on its way into a checked state.

    Args:
        model: The graph, weights included.
        way: How inputs are drawn that it takes.
        device: What it runs on.

    Returns:
        By input "nan", "inf" or "nan inf"; inputs that hide nothing are not in it.

    Raises:
        GraphError: It refuses what was drawn.
    """
    signature = way.signature
    floats = [spec for spec in signature.inputs if signatures.numpy_dtype(spec.dtype).kind == "f"]
    if not floats or not any(is_checked(state) for state in signature.states):
        return {}
    if any(_clamps(function.node) for function in model.functions):
        model = inliner.inline_local_functions(model)
    entering = {name for node in model.graph.node if _clamps([node]) for name in uses(node) if name}
    if not entering:
        return {}
    reached = {spec.name: _reached(model.graph, spec.name) & entering for spec in floats}
    floats = [spec for spec in floats if reached[spec.name]]
    if not floats:
        return {}
    found = dict[str, str]()
    try:
        probe = _Probe(model, way, sorted(set().union(*reached.values())), device)
    except GraphError:
        return dict.fromkeys((spec.name for spec in floats), EVERYTHING)
    probe.start()
    for spec in floats:
        kinds = {kind for poison, kind in _POISONS if probe.lets_through(spec, poison)}
        if kinds:
            found[spec.name] = " ".join(sorted(kinds, reverse=True))
    return found


def _clamps(nodes: Iterable[onnx.NodeProto]) -> bool:
    return any(node.op_type in _CLAMPING or any(_clamps(graph.node) for graph in inner_graphs(node)) for node in nodes)


def _reached(graph: onnx.GraphProto, value: str) -> set[str]:
    """What is computed from a value, itself included."""
    found = {value}
    for node in graph.node:  # In the order in which they run.
        if any(name in found for name in uses(node)):
            found.update(name for name in node.output if name)
    return found


class _Probe:
    """A graph that gives what enters the operators in question."""

    def __init__(self, model: onnx.ModelProto, way: Draws, names: list[str], device: Device) -> None:
        """Raises GraphError where ONNX Runtime does not take it."""
        self._signature = signature = way.signature
        self._batch, self._steps = (2 if is_batched(signature) else 1), (2 if max_slice_of(signature) > 1 else 1)
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        taken = {value.name for value in copy.graph.input}
        self._given = [name for name in names if name in taken]
        self._fetched = [name for name in names if name not in taken]
        copy.graph.ClearField("output")
        copy.graph.ClearField("value_info")
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._fetched)
        self._graph = Graph(copy.SerializeToString(), device) if self._fetched else None
        inputs = way.inputs(self._batch, self._steps, np.random.default_rng(6))
        self._inputs = dict(zip([spec.name for spec in signature.inputs], inputs, strict=True))
        self._usual: list[Array] = []

    def start(self) -> None:
        """Runs it as it is usual. Raises GraphError where it refuses that."""
        self._usual = self._run(self._inputs)

    def lets_through(self, spec: TensorSpec, poison: float) -> bool:
        """Whether something that was finite is not where one row of an input is poison."""
        value = self._inputs[spec.name].copy()
        value[-1] = poison
        try:
            found = self._run({**self._inputs, spec.name: value})
        except GraphError:
            return False  # It refuses such a row by itself.
        pairs = zip(self._usual, found, strict=True)
        return any(b.dtype.kind == "f" and bool((np.isfinite(a) & ~np.isfinite(b)).any()) for a, b in pairs)

    def _run(self, inputs: dict[str, Array]) -> list[Array]:
        signature = self._signature
        feeds = {spec.name: Axes.of_tensor(spec).to_graph(inputs[spec.name]) for spec in signature.inputs}
        for state, value in zip(signature.states, start_values(signature), strict=False):
            rows = np.broadcast_to(value, (self._batch, *value.shape))
            feeds[state.input] = Axes.of_state(state).to_graph(rows)
        given = [feeds[name] for name in self._given]
        if self._graph is None:
            return given
        wanted = {port.name for port in self._graph.inputs}
        feeds = {name: value for name, value in feeds.items() if name in wanted}
        return given + self._graph.run(feeds, self._fetched)
