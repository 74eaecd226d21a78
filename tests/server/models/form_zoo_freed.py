"""Files that were exported with a batch of 1: what fixes it inside can be freed, or is in the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from tests.server.models.form_zoo import Case, Value, ints, model
from tests.server.models.graphs import Builder

_F: Final = "float32"


def reshaped() -> Case:
    """A queue before a convolution, a GRU behind it: targets of Reshape that name the one session, squeezed axes."""
    b = Builder(51)
    frame = b.add("Reshape", ["x", ints(b, 1, 4, 1)])
    joined = b.add("Concat", ["queue", frame], axis=2)
    b.add("Slice", [joined, ints(b, 1), ints(b, 3), ints(b, 2)], ["queue_out"])
    seen = b.add("Relu", [b.add("Conv", [joined, b.weight(5, 4, 3), b.weight(5)])])
    steps = b.add("Reshape", [seen, ints(b, 1, 1, 5)])
    _, new = b.add("GRU", [steps, b.weight(1, 18, 5), b.weight(1, 18, 6), "", "", "h"], [b.name(), "h_out"],
                   hidden_size=6)  # fmt: skip
    kept = b.add("Reshape", [new, ints(b, 1, -1)])
    scores = b.add("Gemm", [kept, b.weight(6, 2), b.weight(2)])
    b.add("Reshape", [scores, ints(b, 1, 1, 2)], ["y"])
    states: list[Value] = [("queue", _F, [1, 4, 2]), ("h", _F, [1, 1, 6])]
    made = model(
        b,
        [("x", _F, [1, 1, 4]), *states],
        [("y", _F, [1, 1, 2]), *((f"{name}_out", _F, dims) for name, _, dims in states)],
    )
    return Case(made, {"queue": "queue_out", "h": "h_out"}, {"x": (1, 4)})


def merged() -> Case:
    """Steps of any number; sessions and steps are one axis for a product, and two again after it."""
    b = Builder(52)
    y, *_ = b.add(
        "LSTM",
        [b.add("Transpose", ["x"], perm=[1, 0, 2]), b.weight(1, 24, 3), b.weight(1, 24, 6), "", "", "h", "c"],
        [b.name(), "h_out", "c_out"],
        hidden_size=6,
    )
    rows = b.add("Transpose", [b.add("Squeeze", [y, ints(b, 1)])], perm=[1, 0, 2])
    flat = b.add("MatMul", [b.add("Reshape", [rows, ints(b, -1, 6)]), b.weight(6, 2)])
    b.add("Reshape", [flat, ints(b, 1, -1, 2)], ["y"])
    states: list[Value] = [("h", _F, [1, 1, 6]), ("c", _F, [1, 1, 6])]
    made = model(
        b,
        [("x", _F, [1, "steps", 3]), *states],
        [("y", _F, [1, "steps", 2]), *((f"{name}_out", _F, dims) for name, _, dims in states)],
    )
    return Case(made, {"h": "h_out", "c": "c_out"}, {"x": (3,)})


def constants() -> Case:
    """Zeros that stand for one session: what an LSTM over a window starts from, and what is put before it."""
    b = Builder(53)
    window = b.add("Concat", ["last", "x"], axis=1)
    b.add("Slice", [window, ints(b, -3), ints(b, 1 << 62), ints(b, 1)], ["last_out"])
    padded = b.add("Concat", [b.constant(np.full((1, 1, 4), 0.5, np.float32)), window], axis=1)
    zeros = b.add("ConstantOfShape", [ints(b, 1, 1, 5)])
    _, new, _ = b.add(
        "LSTM",
        [b.add("Transpose", [padded], perm=[1, 0, 2]), b.weight(1, 20, 4), b.weight(1, 20, 5), "", "", zeros,
         b.constant(np.zeros((1, 1, 5), np.float32))],
        3,
        hidden_size=5,
    )  # fmt: skip
    b.add("MatMul", [b.add("Squeeze", [new, ints(b, 0)]), b.weight(5, 2)], ["y"])
    made = model(b, [("x", _F, [1, 1, 4]), ("last", _F, [1, 3, 4])], [("y", _F, [1, 2]), ("last_out", _F, [1, 3, 4])])
    return Case(made, {"last": "last_out"}, {"x": (1, 4)})


def mixed() -> Case:
    """A mean over the first axis, which is that of sessions: with more than one it would be another model."""
    b = Builder(54)
    centred = b.add("Sub", ["x", b.add("ReduceMean", ["x"], axes=[0], keepdims=1)])
    b.add("Add", [b.add("Mul", ["s", b.constant(np.float32(0.5))]), b.add("Add", [centred, "x"])], ["s_out"])
    b.add("Tanh", ["s_out"], ["y"])
    made = model(b, [("x", _F, [1, 3]), ("s", _F, [1, 3])], [("y", _F, [1, 3]), ("s_out", _F, [1, 3])])
    return Case(made, {"s": "s_out"}, {"x": (3,)}, batched=False)


FREED: Final[Mapping[str, Callable[[], Case]]] = {
    "a batch of 1 in shapes": reshaped,
    "a batch of 1 beside free steps": merged,
    "a batch of 1 in constants": constants,
    "a batch of 1 that is averaged over": mixed,
}
