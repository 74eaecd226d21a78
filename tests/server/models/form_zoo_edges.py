"""More files without a signature: types that NumPy or ONNX Runtime lacks, and steps of a fixed length."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto

from tests.server.models.form_zoo import Case, Value, ints, model
from tests.server.models.graphs import Builder

_BFLOAT16: Final = onnx.helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)


def bfloat(kind: Any = _BFLOAT16) -> onnx.ModelProto:
    """`x`, `h` → `y`, `h_next`, all bfloat16 and computed in it; in float32 every operator rounds to bfloat16."""
    b, narrow = Builder(21), kind == _BFLOAT16

    def rounded(op: str, *given: str, made: str = "") -> str:
        if narrow:
            return str(b.add(op, list(given), [made] if made else 1))
        exact = b.add("Cast", [b.add(op, list(given))], to=TensorProto.BFLOAT16)
        return str(b.add("Cast", [exact], [made] if made else 1, to=TensorProto.FLOAT))

    def weight(*shape: int) -> str:
        values = np.random.default_rng(len(b.weights)).standard_normal(shape) * 0.5
        return str(b.constant(values.astype(_BFLOAT16).astype(kind)))

    mixed = rounded(
        "Add", rounded("MatMul", rounded("Identity", "x"), weight(3, 4)), rounded("MatMul", "h", weight(4, 4))
    )
    new = rounded("Tanh", mixed, made="h_next")
    rounded("MatMul", new, weight(4, 2), made="y")
    dtype = np.dtype(kind).name
    return model(
        b, [("x", dtype, ["n", 3]), ("h", dtype, ["n", 4])], [("y", dtype, ["n", 2]), ("h_next", dtype, ["n", 4])]
    )


def bfloat_edges(dtype: str = "bfloat16") -> onnx.ModelProto:
    """A state and an input of bfloat16 beside arithmetic in float32: ONNX Runtime takes it as it is."""
    b = Builder(22)
    exact = [b.add("Cast", [name], to=TensorProto.BFLOAT16) for name in ("h", "x")]
    old, x = (b.add("Cast", [name], to=TensorProto.FLOAT) for name in exact)
    new = b.add("Tanh", [b.add("Add", [b.add("MatMul", [x, b.weight(3, 3)]), b.add("MatMul", [old, b.weight(3, 3)])])])
    kept = b.add("Cast", [new], to=TensorProto.BFLOAT16)
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    b.add("Cast", [kept], ["h_next"], to=kind)
    b.add("MatMul", [new, b.weight(3, 2)], ["y"])
    return model(
        b, [("x", dtype, ["n", 3]), ("h", dtype, ["n", 3])], [("y", "float32", ["n", 2]), ("h_next", dtype, ["n", 3])]
    )


def kinds() -> Case:
    """States of float64, int64 and truth values: a sum, a count of steps, whether anything was ever above 1."""
    b = Builder(23)
    b.add("Add", ["sum", "x"], ["sum_next"])
    b.add("Add", ["seen", b.constant(np.asarray([1, 2], np.int64))], ["seen_next"])
    high = b.add("Greater", ["x", b.constant(np.float64(1))])
    b.add("Or", ["ever", high], ["ever_next"])
    b.add("Where", ["ever_next", "sum_next", b.add("Mul", ["x", b.constant(np.float64(0.5))])], ["y"])
    states: list[Value] = [("sum", "float64", ["n", 3]), ("seen", "int64", ["n", 2]), ("ever", "bool", ["n", 3])]
    made = model(
        b,
        [("x", "float64", ["n", 3]), *states],
        [("y", "float64", ["n", 3]), *((f"{name}_next", dtype, dims) for name, dtype, dims in states)],
    )
    return Case(made, {name: f"{name}_next" for name, _, _ in states}, {"x": (3,)})


def rank_0() -> Case:
    """One number in, one out, one kept."""
    b = Builder(24)
    b.add("Add", [b.add("Mul", ["level", b.constant(np.float32(0.9))]), "x"], ["level_next"])
    b.add("Tanh", ["level_next"], ["y"])
    f = "float32"
    made = model(b, [("x", f, []), ("level", f, [])], [("y", f, []), ("level_next", f, [])])
    return Case(made, {"level": "level_next"}, {"x": ()}, batched=False)


def frames(batch: int | str) -> Case:
    """Frames of 4 values each, 5 in a run: a run is a step."""
    b = Builder(25)
    steps = b.add("Transpose", ["frames"], perm=[1, 0, 2])
    y, _ = b.add("GRU", [steps, b.weight(1, 18, 4), b.weight(1, 18, 6), "", "", "h"], [b.name(), "h_next"],
                 hidden_size=6)  # fmt: skip
    kept = b.add("Transpose", [b.add("Squeeze", [y, ints(b, 1)])], perm=[1, 0, 2])
    b.add("MatMul", [kept, b.weight(6, 2)], ["scores"])
    f = "float32"
    made = model(
        b,
        [("frames", f, [batch, 5, 4]), ("h", f, [1, batch, 6])],
        [("scores", f, [batch, 5, 2]), ("h_next", f, [1, batch, 6])],
    )
    return Case(made, {"h": "h_next"}, {"frames": (5, 4)})


EDGES: Final[Mapping[str, Callable[[], Case]]] = {
    "bfloat16": lambda: Case(bfloat(), {"h": "h_next"}, {"x": (3,)}, by_hand=bfloat(np.float32)),
    "bfloat16 at the edges": lambda: Case(
        bfloat_edges(), {"h": "h_next"}, {"x": (3,)}, by_hand=bfloat_edges("float32")
    ),
    "float64, int64, bool": kinds,
    "rank 0": rank_0,
    "frames of a fixed length": lambda: frames("n"),
}
