"""Model files that crash, hang or eat: what a server must outlive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def value(name: str, kind: int = FLOAT, shape: Sequence[Any] | None = ("n", 4)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto] = (value("x"),),
    outputs: Sequence[onnx.ValueInfoProto] = (value("y"),),
    weights: Sequence[onnx.TensorProto] = (),
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def weight(name: str, numbers: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(numbers), name)


def outside(name: str, location: str, *, more: Sequence[tuple[str, str]] = ()) -> onnx.TensorProto:
    """A weight of four numbers that lies in a file of its own."""
    tensor = TensorProto(name=name, data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, text in (("location", location), *more):
        tensor.external_data.add(key=key, value=text)
    return tensor


def half_lstm() -> onnx.ModelProto:
    """A half-precision LSTM with a head and free axes: ONNX Runtime 1.31 ends by SIGSEGV while it loads it."""
    rng, kind = np.random.default_rng(0), TensorProto.FLOAT16

    def some(name: str, *shape: int) -> onnx.TensorProto:
        return weight(name, rng.standard_normal(shape).astype(np.float16))

    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "w", "r", "b"], ["all"], hidden_size=5),
        helper.make_node("Squeeze", ["all", "one"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["back"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["back", "head"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["y"]),
    ]
    weights = [some("w", 1, 20, 3), some("r", 1, 20, 5), some("b", 1, 40), some("head", 5, 2), some("bias", 2)]
    return model(
        nodes,
        [value("x", kind, ["b", "t", 3])],
        [value("y", kind, ["b", "t", 2])],
        [*weights, weight("one", np.asarray([1]))],
        opset=14,
    )


def endless() -> onnx.ModelProto:
    """Loops in loops: days of turns, each loop of a number that is allowed."""

    def turn(inner: list[onnx.NodeProto], depth: int) -> onnx.GraphProto:
        nodes = [
            *inner,
            helper.make_node("Identity", [f"c{depth}"], [f"goes{depth}"]),
            helper.make_node("Identity", [f"w{depth}"], [f"out{depth}"]),
        ]
        taken = [value(f"i{depth}", INT64, []), value(f"c{depth}", TensorProto.BOOL, []), value(f"v{depth}")]
        return helper.make_graph(
            nodes, f"turn{depth}", taken, [value(f"goes{depth}", TensorProto.BOOL, []), value(f"out{depth}")]
        )

    inner = turn([helper.make_node("Identity", ["v0"], ["w0"])], 0)
    outer = turn([helper.make_node("Loop", ["turns", "true", "v1"], ["w1"], body=inner)], 1)
    loop = helper.make_node("Loop", ["turns", "true", "x"], ["y"], body=outer)
    return model([loop], weights=[weight("turns", 60_000), weight("true", True)])


def greedy(numbers: int = 2_000_000_000) -> onnx.ModelProto:
    """An array that is made while the graph is loaded."""
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["many"]),
        helper.make_node("ReduceSum", ["many"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    return model(nodes, weights=[weight("size", [numbers])])


def adding(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return model([helper.make_node("Add", ["x", tensor.name], ["y"])], weights=[tensor])


def unused(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return model([helper.make_node("Identity", ["x"], ["y"])], weights=[tensor])


def put(made: onnx.ModelProto | bytes, models_dir: Path, name: str, version: int = 1) -> Path:
    """Writes a file where a server looks for it."""
    folder = models_dir / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    return path


def foreign(*, imported: bool) -> onnx.ModelProto:
    """An operator that only a library of its author has."""
    made = model([helper.make_node("Wow", ["x"], ["y"], domain="com.example")])
    if imported:
        made.opset_import.append(helper.make_opsetid("com.example", 1))
    return made


def unfolding() -> onnx.ModelProto:
    """Constants of some bytes that become 100 GB."""
    nodes = [
        helper.make_node("Expand", ["one", "size"], ["many"]),
        helper.make_node("ReduceSum", ["many"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    return model(nodes, weights=[weight("one", np.float32(1)), weight("size", [5000, 5000, 1000])])


def unending() -> onnx.ModelProto:
    """One loop without a count, whose condition never ends it."""
    taken = [value("i", INT64, []), value("c", TensorProto.BOOL, []), value("v")]
    given = [value("goes", TensorProto.BOOL, []), value("out")]
    nodes = [helper.make_node("Identity", ["c"], ["goes"]), helper.make_node("Identity", ["v"], ["out"])]
    body = helper.make_graph(nodes, "turn", taken, given)
    return model([helper.make_node("Loop", ["", "true", "x"], ["y"], body=body)], weights=[weight("true", True)])


def newer(*, ir: int = 8, opset: int = 17) -> onnx.ModelProto:
    """A graph of a release that is not out yet."""
    made = model([helper.make_node("Relu", ["x"], ["y"])], opset=opset)
    made.ir_version = ir
    return made


REFUSED: Final[dict[str, tuple[Callable[[], onnx.ModelProto | bytes], str]]] = {
    "empty": (lambda: b"", "not an ONNX file"),
    "truncated": (
        lambda: model([helper.make_node("Relu", ["x"], ["y"])]).SerializeToString()[:60],
        "not .*export it again",
    ),
    "foreign operator": (
        lambda: foreign(imported=True),
        r"com.example:Wow\), and libraries of operators are never loaded",
    ),
    "foreign, not imported": (lambda: foreign(imported=False), r"com.example:Wow\), and libraries .* are never loaded"),
    "newer opset": (lambda: newer(opset=99), r"opset 99 of ai.onnx, .* knows up to \d+; export it with opset_version="),
    "newer ir": (lambda: newer(ir=99), r"IR version 99, .* reads up to \d+; export it with an older onnx"),
    "unfolds to 100 GB": (unfolding, "needed more than 256 MiB .*raise --load-memory"),
    "makes 100 GB": (lambda: greedy(25_000_000_000), "needed more than 256 MiB .*raise --load-memory"),
    "never ends": (unending, "turned more than 65536 times|took longer than"),
    "weights elsewhere": (
        lambda: adding(outside("w", "/etc/hostname")),
        "outside the model's folder, which is never read",
    ),
    "weights missing": (lambda: adding(outside("w", "w.bin")), "'w' lies in a file of its own: .* cannot be read"),
}
"""Files that nobody can serve, and what is said of them where 256 MiB are allowed."""


KILLERS: Final[dict[str, tuple[Callable[[], onnx.ModelProto], str]]] = {
    "crashes": (half_lstm, r"ended by signal 11 \(Segmentation fault\) while .*export it otherwise"),
    "hangs": (endless, r"took longer than 1 s while .*, and was stopped; .*raise --load-timeout"),
    "eats": (greedy, r"needed more than 256 MiB while it was tried; .*raise --load-memory"),
}
"""What makes one, and what is said of it where 1 second and 256 MiB are allowed."""
