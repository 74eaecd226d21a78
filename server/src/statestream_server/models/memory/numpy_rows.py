"""Rows that NumPy gathers and scatters around an ordinary run of the user's graph: for every graph and device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from statestream.contract.signature import Signature, StateCheck, forecast_outputs
from statestream_server.arrays import Array, Bools, Ints
from statestream_server.models.graphs.runtime import Graph
from statestream_server.models.memory.fused_rows import InputCheck
from statestream_server.models.memory.slab import SlabRows
from statestream_server.models.rows import Axes


class NumpyRows(SlabRows):
    """A `Rows` of three copies: states out of the slab, through the graph, into the slab."""

    def __init__(self, graph: Graph, signature: Signature, *, check_inputs: bool | Mapping[str, str]) -> None:
        """Rows for a graph as its author wrote it; capacity is 0 until `grow`.

        Args:
            graph: The graph.
            signature: Its signature, which fits it.
            check_inputs: Whether inputs are held to the check of the states; see `InputCheck`.
        """
        super().__init__(signature)
        self._input_check = InputCheck(signature, wanted=check_inputs)
        self._graph = graph
        self._feeds = [spec.name for spec in signature.inputs] + [state.input for state in signature.states]
        self._fetches = [spec.name for spec in signature.outputs] + [state.output for state in signature.states]
        self._inputs = [Axes.of_tensor(spec) for spec in signature.inputs]
        self._outputs = [Axes.of_tensor(spec) for spec in signature.outputs]
        self._states = [Axes.of_state(state) for state in signature.states]
        self._checks = [state.check for state in signature.states]
        names = [spec.name for spec in signature.outputs]
        self._feedback = [names.index(name) for name in forecast_outputs(signature)]

    def step(self, source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        """One run of the graph; see `Rows.step`."""
        with self._lock:
            return self._step(source, target, inputs)

    def _step(self, source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        arrays = self._slab.arrays[: len(self._states)]
        values = [axes.to_graph(value) for axes, value in zip(self._inputs, inputs, strict=True)]
        values += [axes.to_graph(array.take(source, axis=0)) for axes, array in zip(self._states, arrays, strict=True)]
        results = self._graph.run(dict(zip(self._feeds, values, strict=True)), self._fetches)
        count = len(self._outputs)
        outputs = [np.asarray(axes.from_graph(v), order="C") for axes, v in zip(self._outputs, results, strict=False)]
        states = [axes.from_graph(v) for axes, v in zip(self._states, results[count:], strict=True)]
        refused = self._input_check(inputs)
        bad = np.zeros(len(target), np.bool_) if refused is None else refused
        for check, state in zip(self._checks, states, strict=True):
            bad |= failing(check, state)
        states += [outputs[place][:, -1] for place in self._feedback]
        good = target
        if bad.any():
            good, states = target[~bad], [state[~bad] for state in states]
        self._slab.write(good, states)
        return outputs, bad


def failing(check: StateCheck, values: Array) -> Bools:
    """Which rows of values [n, ...] fail a check: bool [n]."""
    if values.dtype.kind != "f" or check == StateCheck.STATE_CHECK_OFF:
        return np.zeros(len(values), np.bool_)
    wrong = np.isnan(values) if check == StateCheck.STATE_CHECK_NAN else ~np.isfinite(values)
    return np.asarray(wrong.reshape(len(values), -1).any(axis=1), np.bool_)
