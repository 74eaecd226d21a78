"""Rows that NumPy gathers and scatters around an ordinary run of the user's graph: for every graph and device."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from statestream.contract.signature import Signature, StateCheck, forecast_outputs
from statestream_server.arrays import Array, Bools, Ints
from statestream_server.models.graphs.runtime import Graph
from statestream_server.models.memory.fused_rows import InputCheck
from statestream_server.models.memory.slab import SlabRows
from statestream_server.models.rows import Axes


class NumpyRows(SlabRows):
    """A `Rows` of three copies: states out of the slab, through the graph, into the slab."""

    def __init__(
        self,
        graph: Graph,
        signature: Signature,
        *,
        check_inputs: bool | Mapping[str, str],
        context: Collection[int] = (),
    ) -> None:
        """Rows for a graph as its author wrote it; capacity is 0 until `grow`.

        Args:
            graph: The graph.
            signature: Its signature, which fits it.
            check_inputs: Whether inputs are held to the check of the states; see `InputCheck`.
            context: The places of states that rows share; see contexts.py.
        """
        super().__init__(signature, context)
        self._input_check = InputCheck(signature, wanted=check_inputs)
        self._graph = graph
        self._feeds = [spec.name for spec in signature.inputs] + [state.input for state in signature.states]
        self._fetches = [spec.name for spec in signature.outputs] + [
            state.output for place, state in enumerate(signature.states) if place not in context
        ]
        self._inputs = [Axes.of_tensor(spec) for spec in signature.inputs]
        self._outputs = [Axes.of_tensor(spec) for spec in signature.outputs]
        self._states = [Axes.of_state(state) for state in signature.states]
        self._own = [place for place in range(len(signature.states)) if place not in context]
        self._checks = [signature.states[place].check for place in self._own]
        names = [spec.name for spec in signature.outputs]
        self._feedback = [names.index(name) for name in forecast_outputs(signature)]

    def step(self, source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        """One run of the graph; see `Rows.step`."""
        with self._lock:
            return self._step(source, target, inputs)

    def _step(self, source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        arrays = self._slab.arrays[: len(self._states)]
        slots = source if self.contexts is None else self.contexts.of(source)
        values = [axes.to_graph(value) for axes, value in zip(self._inputs, inputs, strict=True)]
        values += [
            axes.to_graph(array.take(source if place in self._own else slots, axis=0))
            for place, (axes, array) in enumerate(zip(self._states, arrays, strict=True))
        ]
        results = self._graph.run(dict(zip(self._feeds, values, strict=True)), self._fetches)
        count = len(self._outputs)
        outputs = [np.asarray(axes.from_graph(v), order="C") for axes, v in zip(self._outputs, results, strict=False)]
        states = [self._states[place].from_graph(v) for place, v in zip(self._own, results[count:], strict=True)]
        refused = self._input_check(inputs)
        bad = np.zeros(len(target), np.bool_) if refused is None else refused
        for check, state in zip(self._checks, states, strict=True):
            bad |= failing(check, state)
        states += [outputs[place][:, -1] for place in self._feedback]
        if bad.any():
            source, target, states = source[~bad], target[~bad], [state[~bad] for state in states]
        places = [*self._own, *range(len(self._states), len(self.columns))]
        self._slab.commit(source, target, dict(zip(places, states, strict=True)))
        return outputs, bad


def failing(check: StateCheck, values: Array) -> Bools:
    """Which rows of values [n, ...] fail a check: bool [n]."""
    if values.dtype.kind != "f" or check == StateCheck.STATE_CHECK_OFF:
        return np.zeros(len(values), np.bool_)
    wrong = np.isnan(values) if check == StateCheck.STATE_CHECK_NAN else ~np.isfinite(values)
    return np.asarray(wrong.reshape(len(values), -1).any(axis=1), np.bool_)
