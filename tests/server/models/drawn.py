"""Small recurrent graphs by chance: cells, layouts, types, names. Their memory is known by how they are built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import onnx
import onnxruntime
from hypothesis import strategies as st

from statestream_server.arrays import Array

FEATURES: Final = 3
STEPPED: Final = ("primitive", "gated", "average", "queue", "delay", "RNN", "GRU", "LSTM", "count", "flag", "constant")
"""Cells that take one step a run."""
TIMED: Final = ("scan", "loop", "cumulated", "RNN", "GRU", "LSTM")
"""Cells that take any number of them."""
_SHOWN: Final = ("queue", "RNN", "GRU", "LSTM", "scan", "loop")
"""Those whose graph shows by itself what is memory."""


@dataclass(frozen=True)
class Spec:
    """How a graph is built.

    Attributes:
        timed: Whether a run takes any number of steps.
        cells: The kinds of its cells, from input to output.
        layout: The axes of inputs and outputs in their order: b, t and f; k is a fixed length, 1 one of length 1.
        stored: By cell, how its state lies: the axes b and those of a row (h), 1 as above.
        batch: How the axis of sessions is said: a name, "" for no name, "1" for a fixed length of 1.
        dtype: Of all that is no whole number.
        head: "dense": an output of its own; "state": the last state is all that comes out; "both".
        extra: What else there is: "mask", "pair" (an input and an output that have nothing to do with memory), "echo".
        names: "words" that say nothing, those of the "field", or "lies": those of the field with the wrong partners.
        hidden: The width of states; 0 for one by chance. As wide as inputs, they are of one type and shape.
        told: What outputs say of their axes: "all", "ranks" or "nothing"; "other" where each has a name of its own for
            the axis of sessions.
        weak: What spoils it a little: "rows" (their mean), "ahead" (the mean over steps), "behind" (the step before, as
            far as it is in the run).
        joined: Whether states of one shape lie in one tensor [layers, …].
        seed: Of weights, words and orders.
    """

    timed: bool
    cells: Sequence[str]
    layout: str
    stored: Sequence[str]
    batch: str
    dtype: str
    head: str
    extra: str
    names: str
    hidden: int
    told: str
    weak: str
    joined: bool
    seed: int


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Specs of graphs."""
    timed = draw(st.booleans())
    dtype = draw(st.sampled_from(["float32", "float32", "float32", "float64", "float16"]))
    kinds = [kind for kind in (TIMED if timed else STEPPED) if dtype == "float32" or kind not in ("RNN", "GRU", "LSTM")]
    cells = draw(st.lists(st.sampled_from(kinds), max_size=3))
    layout = draw(
        st.sampled_from(["tbf", "btf", "bft", "tf", "ft"] if timed else ["bf", "fb", "b1f", "bkf", "f", "1f"])
    )
    batched = "b" in layout
    stored = [draw(st.sampled_from(["bh", "1bh", "b1h", "hb"] if batched else ["h", "1h", "h1"])) for _ in cells]
    return Spec(
        timed,
        cells,
        layout,
        stored,
        draw(st.sampled_from(["batch", "N", "", "1"])),
        dtype,
        draw(st.sampled_from(["dense", "dense", "state", "both"])),
        draw(st.sampled_from(["", "", "mask", "pair", "echo"])),
        draw(st.sampled_from(["words", "field", "field"] + ["lies"] * (set(cells) <= set(_SHOWN)))),
        draw(st.sampled_from([0, 0, FEATURES])),
        draw(st.sampled_from(["all", "all", "ranks", "nothing", "other"])),
        draw(st.sampled_from(["", "", "", "rows"] + ["ahead", "behind"] * timed)),
        draw(st.booleans()),
        draw(st.integers(0, 1 << 20)),
    )


@dataclass
class State:
    """A state: where it comes in and goes out, and its value of one session in the graph's axes."""

    old: str
    new: str
    start: Array


@dataclass
class Drawn:
    """A graph and what is known of it.

    Attributes:
        model: The file.
        states: Its memory.
        inputs: What is sent: by name the shape of a step, and how a step [*step] lies in the graph.
        calls: By input its shape in a call of several rows and steps.
    """

    model: onnx.ModelProto
    states: list[State] = field(default_factory=list)
    inputs: dict[str, tuple[tuple[int, ...], Callable[[Array], Array]]] = field(default_factory=dict)
    calls: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def call(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """What ONNX Runtime makes of a call."""
        names = [value.name for value in self.model.graph.output]
        return dict(zip(names, self._alone().run(names, dict(inputs)), strict=True))

    def loop(self, steps: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """All outputs of each step, states too, of a loop over ONNX Runtime that keeps the states of one session."""
        runtime = self._alone()
        kept, told = {state.old: state.start for state in self.states}, list[dict[str, Array]]()
        names = [value.name for value in self.model.graph.output]
        for step in steps:
            feeds = {name: lay(step[name]) for name, (_, lay) in self.inputs.items()}
            told.append(dict(zip(names, runtime.run(names, {**feeds, **kept}), strict=True)))
            kept = {state.old: told[-1][state.new] for state in self.states}
        return told

    def _alone(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        return onnxruntime.InferenceSession(self.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
