"""Models over a window of past steps, as N-BEATS, N-HiTS, TCNs, CNNs and MLPs are exported, without any memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnxruntime

from statestream_server.arrays import Array
from tests.server.models.form_zoo import Case, ints, model
from tests.server.models.graphs import Builder


@dataclass(frozen=True)
class Windowed(Case):
    """A file over a window; the loop keeps what came by hand.

    Attributes:
        window: Inputs that take past steps: how many, along which axis, and what stands before the first.
    """

    window: Mapping[str, tuple[int, int, str]] = field(default_factory=dict)

    def loop(self, steps: Sequence[Mapping[str, Array]]) -> list[Array]:
        runtime = onnxruntime.InferenceSession(self.model.SerializeToString(), providers=["CPUExecutionProvider"])
        names, told = [value.name for value in self.model.graph.output], list[Array]()
        for count in range(1, len(steps) + 1):
            feeds = {name: self._fed(name, [step[name] for step in steps[:count]]) for name in steps[0]}
            results = dict(zip(names, runtime.run(None, feeds), strict=True))
            if any(before == "hold" for _, _, before in self.window.values()):
                self._hold(results, count)
            told.append(np.concatenate([results[name].reshape(-1) for name in sorted(results)]))
        return told

    def _fed(self, name: str, came: Sequence[Array]) -> Array:
        """What the graph is given of an input, of whose steps these came."""
        if name not in self.window:
            return came[-1][np.newaxis]
        steps, axis, before = self.window[name]
        first = came[0] if before == "pad" else np.zeros_like(came[0])
        window = np.stack([*[first] * (steps - len(came)), *came[-steps:]])
        return np.ascontiguousarray(np.moveaxis(window[np.newaxis], 1, axis))

    def _hold(self, results: dict[str, Array], count: int) -> None:
        """Has the outputs say nothing before the windows are full."""
        steps = max(steps for steps, _, _ in self.window.values())
        if not all(value.dtype.kind == "f" for value in results.values()):
            results["full"] = np.asarray([count >= steps])
        for name, value in results.items() if count < steps else ():
            results[name] = np.full_like(value, np.nan if value.dtype.kind == "f" else 0)


def n_beats() -> Windowed:
    """Blocks of an MLP over the last 4 values [B, 4] that take away what they explain; 3 values ahead come out."""
    b, left, ahead = Builder(14), "insample", list[str]()
    for _ in range(2):
        hidden = b.add("Relu", [b.add("Gemm", [left, b.weight(4, 16), b.weight(16)])])
        left = b.add("Sub", [left, b.add("MatMul", [hidden, b.weight(16, 4)])])
        ahead.append(b.add("MatMul", [hidden, b.weight(16, 3)]))
    b.add("Add", ahead, ["forecast"])
    made = model(b, [("insample", "float32", ["B", 4])], [("forecast", "float32", ["B", 3])])
    return Windowed(made, {}, {"insample": ()}, "window = { insample = 4 }", window={"insample": (4, 1, "start")})


def n_hits() -> Windowed:
    """Pools its window [B, T] and interpolates; a graph of any T, and covariates of the last step beside it."""
    b = Builder(15)
    channels = b.add("Unsqueeze", ["y", ints(b, 1)])
    pooled = b.add("MaxPool", [channels], kernel_shape=[2], strides=[2])
    flat = b.add("Reshape", [pooled, ints(b, -1, 2)])
    knots = b.add("Gemm", [b.add("Concat", [flat, "exog"], axis=1), b.weight(4, 2), b.weight(2)])
    b.add("Squeeze", [b.add("Resize", [b.add("Unsqueeze", [knots, ints(b, 1)]), "", "", ints_of(b, knots, 4)],
                            mode="linear"), ints(b, 1)], ["forecast"])  # fmt: skip
    f = "float32"
    made = model(b, [("y", f, ["B", "T"]), ("exog", f, ["B", 2])], [("forecast", f, ["B", 4])])
    told = 'window = { y = { steps = 4, before = "hold" } }'
    return Windowed(made, {}, {"y": (), "exog": (2,)}, told, window={"y": (4, 1, "hold")})


def ints_of(b: Builder, value: str, length: int) -> str:
    """The sizes of a value [B, 1, length] to be."""
    return str(b.add("Concat", [b.add("Slice", [b.add("Shape", [value]), ints(b, 0), ints(b, 1)]), ints(b, 1, length)],
                     axis=0))  # fmt: skip


def tcn() -> Windowed:
    """Two dilated convolutions over [B, channels, steps]; before the first step stands that step."""
    b = Builder(16)
    value = b.add("Relu", [b.add("Conv", ["x", b.weight(5, 3, 2), b.weight(5)], dilations=[1], pads=[1, 0])])
    value = b.add("Conv", [value, b.weight(4, 5, 2), b.weight(4)], dilations=[2], pads=[2, 0])
    last = b.add("Slice", [value, ints(b, -1), ints(b, 1 << 62), ints(b, 2)])
    b.add("Squeeze", [last, ints(b, 2)], ["y"])
    made = model(b, [("x", "float32", ["B", 3, 4])], [("y", "float32", ["B", 4])])
    told = 'window = { x = { steps = 4, before = "pad" } }'
    return Windowed(made, {}, {"x": (3,)}, told, window={"x": (4, 2, "pad")})


def window_classifier() -> Windowed:
    """A CNN over [B, steps, features] that gives scores and a class; no answer before the window is full."""
    b = Builder(17)
    value = b.add("Conv", [b.add("Transpose", ["x"], perm=[0, 2, 1]), b.weight(4, 3, 3), b.weight(4)])
    scores = b.add("Gemm", [b.add("Flatten", [b.add("Relu", [value])]), b.weight(8, 3), b.weight(3)], ["scores"])
    b.add("ArgMax", [scores], ["label"], axis=1, keepdims=0)
    made = model(b, [("x", "float32", ["B", 4, 3])], [("scores", "float32", ["B", 3]), ("label", "int64", ["B"])])
    told = 'window = { x = { steps = 4, before = "hold" } }'
    return Windowed(made, {}, {"x": (3,)}, told, window={"x": (4, 1, "hold")})


def window_mlp() -> Case:
    """An MLP over 4 steps of 3 numbers, flattened: 9 of 12 are those of the steps before."""
    b = Builder(18)
    hidden = b.add("Tanh", [b.add("Gemm", ["x", b.weight(12, 6), b.weight(6)])])
    b.add("MatMul", [hidden, b.weight(6, 2)], ["y"])
    made = model(b, [("x", "float32", ["B", 12])], [("y", "float32", ["B", 2])])
    return Case(made, {}, {"x": (3,)}, "context = { x = 9 }", context={"x": 9})


WINDOWS: Final[Mapping[str, Callable[[], Case]]] = {
    "n-beats": n_beats,
    "n-hits": n_hits,
    "tcn": tcn,
    "cnn over a window": window_classifier,
    "mlp over a window": window_mlp,
}
