"""The models that tests serve: small ONNX files with signatures, and ONNX Runtime as the judge of their outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from statestream import signature as signatures
from statestream.signature import Decoding, Signature, StateSpec, TensorSpec, Text, start_row
from statestream_server.arrays import Array
from statestream_server.models.rows import Axes
from tests.server.models.graphs import Builder, recurrent, save

TOKENS: Final = 6
"""Rows of the table of "tokens"; a larger token makes the graph itself fail."""
LETTERS: Final = "abcdefgh"


def lstm() -> onnx.ModelProto:
    return recurrent("LSTM", features=3, hidden=5, layers=2, outputs=2, feedback=False, seed=1)[0]


def gru() -> onnx.ModelProto:
    return recurrent("GRU", features=2, hidden=6, outputs=3, seed=2)[0]


def loop(seed: int = 3, hidden: int = 5) -> onnx.ModelProto:
    """An LSTM whose outputs are its next inputs: it can forecast."""
    return recurrent("LSTM", features=2, hidden=hidden, outputs=2, feedback=True, seed=seed)[0]


def counter(factor: float = 1.0, width: int = 1, outputs: int = 1) -> onnx.ModelProto:
    """y = s' = s + x, one step a run: outputs tell exactly which steps were applied, NaN spoils the state.

    Args:
        factor: Multiplies x.
        width: Numbers in x and the state.
        outputs: How often the state comes in y.
    """
    b = Builder()
    shape = [-1, width]
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="x", dtype="float32", shape=shape, batch_axis=0)],
        outputs=[TensorSpec(name="y", dtype="float32", shape=[-1, width * outputs], batch_axis=0)],
        states=[StateSpec(input="s", output="s_out", dtype="float32", shape=shape, batch_axis=0)],
    )
    scaled = b.add("Mul", ["x", b.constant(np.asarray(factor, np.float32))]) if factor != 1 else "x"
    b.add("Add", ["s", scaled], ["s_out"])
    b.add("Concat", ["s_out"] * outputs, ["y"], axis=1)
    return b.model(signature)


def tokens() -> onnx.ModelProto:
    """Sums the vectors of tokens; ONNX Runtime refuses a run with a token beyond the table."""
    b, width = Builder(), 3
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="token", dtype="int64", shape=[-1, -1], batch_axis=0, time_axis=1)],
        outputs=[TensorSpec(name="y", dtype="float32", shape=[-1, -1, width], batch_axis=0, time_axis=1)],
        states=[StateSpec(input="s", output="s_out", dtype="float32", shape=[-1, width], batch_axis=0)],
    )
    # Whole numbers: their sums are the same bits in any order.
    table = b.constant(np.random.default_rng(4).integers(-9, 9, (TOKENS, width)).astype(np.float32))
    vectors = b.add("Gather", [table, "token"], axis=0)
    one = b.constant(np.asarray([1], np.int64))
    sums = b.add("CumSum", [vectors, b.constant(np.asarray(1, np.int64))])
    b.add("Add", [sums, b.add("Unsqueeze", ["s", one])], ["y"])
    b.add("Add", ["s", b.add("ReduceSum", [vectors, one], keepdims=0)], ["s_out"])
    return b.model(signature)


def ragged() -> onnx.ModelProto:
    """Steps of any width: a model with memory cannot be served so."""
    b, axis = Builder(), np.asarray([2], np.int64)
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="x", dtype="float32", shape=[-1, -1, -1], batch_axis=0, time_axis=1)],
        outputs=[TensorSpec(name="y", dtype="float32", shape=[-1, -1], batch_axis=0, time_axis=1)],
        states=[StateSpec(input="s", output="s_out", dtype="float32", shape=[-1, 1], batch_axis=0)],
    )
    sums = b.add("ReduceSum", ["x", b.constant(axis)], keepdims=0)
    b.add("Add", [b.add("CumSum", [sums, b.constant(np.asarray(1, np.int64))]), "s"], ["y"])
    b.add("Add", ["s", b.add("ReduceSum", [sums, b.constant(axis - 1)], keepdims=1)], ["s_out"])
    return b.model(signature)


def wide(width: int) -> onnx.ModelProto:
    """y = s' + (0, 1, …, width - 1) with s' = s + x: small steps with large answers."""
    b = Builder()
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="x", dtype="float32", shape=[-1, 1], batch_axis=0)],
        outputs=[TensorSpec(name="y", dtype="float32", shape=[-1, width], batch_axis=0)],
        states=[StateSpec(input="s", output="s_out", dtype="float32", shape=[-1, 1], batch_axis=0)],
    )
    b.add("Add", ["s", "x"], ["s_out"])
    b.add("Add", ["s_out", b.constant(np.arange(width, dtype=np.float32)[None])], ["y"])
    return b.model(signature)


def spread(width: int) -> onnx.ModelProto:
    """Without memory: x + (0, 1, …, width - 1), and x as often as it has columns, which the signature leaves free."""
    b = Builder()
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="x", dtype="float32", shape=[-1, -1], batch_axis=0)],
        outputs=[
            TensorSpec(name="y", dtype="float32", shape=[-1, width], batch_axis=0),
            TensorSpec(name="free", dtype="float32", shape=[-1, -1], batch_axis=0),
        ],
    )
    first = b.add("ReduceMax", ["x"], axes=[1], keepdims=1)
    b.add("Add", [first, b.constant(np.arange(width, dtype=np.float32)[None])], ["y"])
    b.add("Concat", ["x"] * 64, ["free"], axis=1)
    return b.model(signature)


def scores() -> onnx.ModelProto:
    """Without memory: a linear layer, and the best class."""
    b = Builder(5)
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="x", dtype="float32", shape=[-1, 4], batch_axis=0)],
        outputs=[
            TensorSpec(name="scores", dtype="float32", shape=[-1, 3], batch_axis=0, classes=["a", "b", "c"]),
            TensorSpec(name="best", dtype="int64", shape=[-1], batch_axis=0),
        ],
    )
    b.add("MatMul", ["x", b.weight(4, 3)], ["scores"])
    b.add("ArgMax", ["scores"], ["best"], axis=1, keepdims=0)
    return b.model(signature)


def encoder() -> onnx.ModelProto:
    b = Builder(6)
    text = Text(vocabulary=list(LETTERS))
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="source", dtype="int64", shape=[-1, -1], batch_axis=0, time_axis=1, text=text)],
        outputs=[TensorSpec(name="memory", dtype="float32", shape=[-1, 4], batch_axis=0)],
    )
    vectors = b.add("Gather", [b.weight(len(LETTERS), 4, scale=1.0), "source"], axis=0)
    b.add("ReduceSum", [vectors, b.constant(np.asarray([1], np.int64))], ["memory"], keepdims=0)
    return b.model(signature)


def decoder() -> onnx.ModelProto:
    b = Builder(7)
    symbols = ["<start>", "<end>", *LETTERS]
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="token", dtype="int64", shape=[-1], batch_axis=0)],
        outputs=[TensorSpec(name="scores", dtype="float32", shape=[-1, len(symbols)], batch_axis=0)],
        states=[
            StateSpec(input="h", output="h_out", dtype="float32", shape=[-1, 4], batch_axis=0, from_encoder="memory")
        ],
        decoding=Decoding(
            input="token",
            output="scores",
            start_token=0,
            end_token=1,
            text=Text(vocabulary=symbols),
            max_tokens=12,
        ),
    )
    vector = b.add("Gather", [b.weight(len(symbols), 4, scale=1.0), "token"], axis=0)
    b.add("Tanh", [b.add("Add", [b.add("MatMul", ["h", b.weight(4, 4, scale=0.9)]), vector])], ["h_out"])
    b.add("MatMul", ["h_out", b.weight(4, len(symbols), scale=1.0)], ["scores"])
    return b.model(signature)


_SINGLE: Final[Mapping[str, Callable[[], onnx.ModelProto]]] = {
    "lstm": lstm,
    "gru": gru,
    "loop": loop,
    "counter": counter,
    "tokens": tokens,
    "scores": scores,
}


def write(folder: Path, *names: str) -> Path:
    """Writes models by name as MODELS_DIR/<name>/1; all of them without names. "pair" is the encoder-decoder."""
    for name in names or (*_SINGLE, "pair"):
        if name == "pair":
            save(encoder(), folder / name / "1", "encoder.onnx")
            save(decoder(), folder / name / "1", "decoder.onnx")
        else:
            save(_SINGLE[name](), folder / name / "1")
    return folder


def write_wide(folder: Path, width: int) -> Path:
    """Writes "wide" and "spread", whose answers have so many numbers a step."""
    save(wide(width), folder / "wide" / "1")
    save(spread(width), folder / "spread" / "1")
    return folder


def write_loops(folder: Path) -> Path:
    """Writes three versions of "loop": the last has the state of the second, the first another one."""
    for version, model in enumerate((loop(8, hidden=4), loop(9), loop()), start=1):
        save(model, folder / "loop" / str(version))
    return folder


def write_counter(folder: Path, version: int, *, description: str = "", **kind: Any) -> Path:
    """Writes a version of "counter"; `kind` as `counter` takes it."""
    model = counter(**kind)
    if description:
        (entry,) = model.metadata_props
        signature = signatures.loads(entry.value)
        signature.description = description
        entry.value = signatures.dumps(signature)
    save(model, folder / "counter" / str(version))
    return folder


def write_version(folder: Path, name: str, version: int, *, seed: int, described: str = "") -> Path:
    """Writes an LSTM of other weights as a version of a model."""
    model, signature = recurrent("LSTM", features=3, hidden=5, layers=2, outputs=2, seed=seed)
    signature.description = described
    helper.set_model_props(model, {signatures.METADATA_KEY: signatures.dumps(signature)})
    return save(model, folder / name / str(version))


class Whole:
    """A model file run by ONNX Runtime alone: one session, a whole sequence in one run (or step by step)."""

    def __init__(self, file: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.signature = signatures.loads(metadata[signatures.METADATA_KEY])

    def start(self) -> dict[str, Array]:
        """The states at position 0, by name, without their batch axis."""
        return {spec.input: start_row(spec) for spec in self.signature.states}

    def run(self, inputs: Mapping[str, Array], states: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Outputs by name, [T, ...one step], of inputs [T, ...one step]; `states` is updated in place."""
        return self.run_from(inputs, self.start() if states is None else dict(states))[0]

    def run_from(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Outputs, and the states after them."""
        specs = [*self.signature.inputs, *self.signature.outputs]
        if all(spec.HasField("time_axis") for spec in specs):
            return self._once(inputs, states)
        steps, found = len(next(iter(inputs.values()))), list[dict[str, Array]]()
        for step in range(steps):
            outputs, states = self._once({name: array[step : step + 1] for name, array in inputs.items()}, states)
            found.append(outputs)
        return {name: np.concatenate([one[name] for one in found]) for name in found[0]}, dict(states)

    def call(self, **inputs: Array) -> dict[str, Array]:
        """The graph as it is, without states."""
        names = [spec.name for spec in self.signature.outputs]
        return dict(zip(names, self._session.run(names, inputs), strict=True))

    def _once(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        fed: dict[str, Any] = {s.name: Axes.of_tensor(s).to_graph(inputs[s.name][None]) for s in self.signature.inputs}
        fed |= {s.input: Axes.of_state(s).to_graph(states[s.input][None]) for s in self.signature.states}
        names = [s.name for s in self.signature.outputs] + [s.output for s in self.signature.states]
        values = dict(zip(names, self._session.run(names, fed), strict=True))
        outputs = {s.name: Axes.of_tensor(s).from_graph(values[s.name])[0] for s in self.signature.outputs}
        return outputs, {s.input: Axes.of_state(s).from_graph(values[s.output])[0] for s in self.signature.states}
