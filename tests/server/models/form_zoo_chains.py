"""Models of several files: two nets with a transform between them, as DTLN's, and preprocessing before a net."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx
import onnxruntime

from statestream_server.arrays import Array
from tests.server.models.form_zoo import Case, ints, model
from tests.server.models.graphs import Builder

_FRAME, _BINS, _HIDDEN = 8, 5, 6


@dataclass(frozen=True)
class Chain(Case):
    """Several files; the loop runs one after the other and carries everything between them by hand.

    Attributes:
        parts: The files in order.
        wires: Inputs by the outputs that they take, all by file and name.
        kept: States, by file and input the output.
    """

    parts: Mapping[str, onnx.ModelProto] = field(default_factory=dict)
    wires: Mapping[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    kept: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @property
    def files(self) -> Mapping[str, onnx.ModelProto]:
        return self.parts

    def loop(self, steps: Sequence[Mapping[str, Array]]) -> list[Array]:
        runtimes = {
            file: onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
            for file, proto in self.parts.items()
        }
        known: dict[tuple[str, str], Array] = {}
        for (file, name), _ in self.kept.items():
            (port,) = (each for each in runtimes[file].get_inputs() if each.name == name)
            known[file, name] = np.zeros([size if isinstance(size, int) else 1 for size in port.shape], np.float32)
        told = list[Array]()
        for step in steps:
            seen = dict[str, Array]()
            for file, runtime in runtimes.items():
                feeds = {}
                for port in runtime.get_inputs():
                    key = file, port.name
                    value = known[self.wires[key]] if key in self.wires else known.get(key)
                    if value is None:
                        given = step[port.name]
                        value = given.reshape((1,) * (len(port.shape) - given.ndim) + given.shape)
                    feeds[port.name] = value
                names = [each.name for each in runtime.get_outputs()]
                for name, value in zip(names, runtime.run(names, feeds), strict=True):
                    known[file, name] = value
                    inner = {*self.wires.values(), *((f, new) for (f, _), new in self.kept.items())}
                    if (file, name) not in inner:
                        seen[name] = value
            for (file, old), new in self.kept.items():
                known[file, old] = known[file, new]
            told.append(np.concatenate([seen[name].reshape(-1) for name in sorted(seen)]))
        return told


def _basis() -> tuple[Array, Array]:
    """The cosines and sines of a real Fourier transform [frame, bins]."""
    at = np.outer(np.arange(_FRAME), np.arange(_BINS)) * (2 * np.pi / _FRAME)
    return np.cos(at).astype(np.float32), -np.sin(at).astype(np.float32)


def analysis() -> onnx.ModelProto:
    """A frame's spectrum: magnitudes and both parts."""
    b = Builder(31)
    cosines, sines = _basis()
    b.add("MatMul", ["frame", b.constant(cosines)], ["re"])
    b.add("MatMul", ["frame", b.constant(sines)], ["im"])
    power = b.add("Add", [b.add("Mul", ["re", "re"]), b.add("Mul", ["im", "im"])])
    b.add("Sqrt", [b.add("Add", [power, b.constant(np.float32(1e-6))])], ["mag"])
    f, bins = "float32", [1, 1, _BINS]
    return model(b, [("frame", f, [1, 1, _FRAME])], [("mag", f, bins), ("re", f, bins), ("im", f, bins)], 13)


def net(given: str, state: str, made: str, after: str, width: int, opset: int = 17) -> onnx.ModelProto:
    """A half of DTLN: an LSTM whose two states lie in one tensor [1, 1, hidden, 2], of names that say nothing."""
    b = Builder(32 + width)
    both = b.add("Transpose", [state], perm=[3, 0, 1, 2])
    h, c = (b.add("Squeeze", [b.add("Slice", [both, ints(b, n), ints(b, n + 1), ints(b, 0)]), ints(b, 0)])
            for n in (0, 1))  # fmt: skip
    y, *new = b.add(
        "LSTM",
        [given, b.weight(1, 4 * _HIDDEN, width), b.weight(1, 4 * _HIDDEN, _HIDDEN), b.weight(1, 8 * _HIDDEN), "", h, c],
        3,
        hidden_size=_HIDDEN,
    )
    b.add("Concat", [b.add("Unsqueeze", [each, ints(b, 3)]) for each in new], [after], axis=3)
    out = b.add("MatMul", [b.add("Squeeze", [y, ints(b, 1)]), b.weight(_HIDDEN, width)])
    b.add("Sigmoid", [out], [made])
    f, states = "float32", [1, 1, _HIDDEN, 2]
    return model(
        b, [(given, f, [1, 1, width]), (state, f, states)], [(made, f, [1, 1, width]), (after, f, states)], opset
    )


def synthesis() -> onnx.ModelProto:
    """A masked spectrum back to its frame."""
    b = Builder(33)
    cosines, sines = _basis()
    parts = [b.add("MatMul", [b.add("Mul", ["mask", name]), b.constant(np.ascontiguousarray(basis.T) / _FRAME)])
             for name, basis in (("re", cosines), ("im", sines))]  # fmt: skip
    b.add("Add", parts, ["estimate"])
    f, bins = "float32", [1, 1, _BINS]
    return model(b, [("mask", f, bins), ("re", f, bins), ("im", f, bins)], [("estimate", f, [1, 1, _FRAME])])


def dtln() -> Chain:
    """DTLN's halves with the transform between them as files of their own; opsets 11 to 17."""
    parts = {
        "analysis.onnx": analysis(),
        "model_1.onnx": net("input_2", "input_3", "activation_2", "tf_op_layer_stack_2", _BINS),
        "synthesis.onnx": synthesis(),
        "model_2.onnx": net("input_4", "input_5", "conv1d_3", "tf_op_layer_stack_5", _FRAME),
    }
    told = f"chain = {[*parts]}\n[wires]\nmodel_1.input_2 = 'mag'\nmask = 'activation_2'\nre = 're'\nim = 'im'\n"
    told += "input_4 = 'estimate'\n"
    wires = {
        ("model_1.onnx", "input_2"): ("analysis.onnx", "mag"),
        ("synthesis.onnx", "mask"): ("model_1.onnx", "activation_2"),
        ("synthesis.onnx", "re"): ("analysis.onnx", "re"),
        ("synthesis.onnx", "im"): ("analysis.onnx", "im"),
        ("model_2.onnx", "input_4"): ("synthesis.onnx", "estimate"),
    }
    states = {"input_3": "tf_op_layer_stack_2", "input_5": "tf_op_layer_stack_5"}
    kept = {("model_1.onnx", "input_3"): "tf_op_layer_stack_2", ("model_2.onnx", "input_5"): "tf_op_layer_stack_5"}
    return Chain(parts["analysis.onnx"], states, {"frame": (1, _FRAME)}, told, parts=parts, wires=wires, kept=kept)


def preprocessed() -> Chain:
    """Scaling with a running mean before a GRU whose tensors are called alike; nothing tells of wires."""
    first = Builder(41)
    new = first.add("Add", [first.add("Mul", ["h", first.constant(np.float32(0.9))]),
                            first.add("Mul", ["x", first.constant(np.float32(0.1))])], ["h_out"])  # fmt: skip
    first.add("Sub", ["x", new], ["y"])
    f = "float32"
    scaling = model(
        first,
        [("x", f, ["batch", 3]), ("h", f, ["batch", 3])],
        [("y", f, ["batch", 3]), ("h_out", f, ["batch", 3])],
        13,
    )
    b = Builder(42)
    _, new = b.add("GRU", [b.add("Unsqueeze", ["x", ints(b, 0)]), b.weight(1, 15, 3), b.weight(1, 15, 5), "", "", "h"],
                   [b.name(), "h_out"], hidden_size=5)  # fmt: skip
    b.add("MatMul", [b.add("Squeeze", [new, ints(b, 0)]), b.weight(5, 2)], ["y"])
    cell = model(b, [("x", f, ["N", 3]), ("h", f, [1, "N", 5])], [("y", f, ["N", 2]), ("h_out", f, [1, "N", 5])])
    parts = {"scale.onnx": scaling, "cell.onnx": cell}
    kept = {("scale.onnx", "h"): "h_out", ("cell.onnx", "h"): "h_out"}
    return Chain(
        scaling, {"h": "h_out"}, {"x": (3,)}, f"chain = {[*parts]}", parts=parts,
        wires={("cell.onnx", "x"): ("scale.onnx", "y")}, kept=kept,
    )  # fmt: skip


CHAINS: Final[Mapping[str, Callable[[], Case]]] = {"dtln": dtln, "preprocessing": preprocessed}
