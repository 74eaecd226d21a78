"""Small ONNX models for tests: recurrent cells, counters, masks; built here so that no test needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from statestream import signature as signatures
from statestream.signature import Feedback, Signature, StateCheck, StateSpec, TensorSpec

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


class Builder:
    """Collects nodes and weights of one graph."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(seed)
        self._count = 0

    def name(self) -> str:
        self._count += 1
        return f"t{self._count}"

    def constant(self, value: Any) -> str:
        name = self.name()
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, *shape: int, dtype: str = "float32", scale: float = 0.3) -> str:
        return self.constant((self._rng.standard_normal(shape) * scale).astype(dtype))

    def add(self, op: str, inputs: Sequence[str], outputs: int | Sequence[str] = 1, **attributes: Any) -> Any:
        names = [self.name() for _ in range(outputs)] if isinstance(outputs, int) else list(outputs)
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names[0] if len(names) == 1 else names

    def model(self, signature: Signature, opset: int = 17, *, described: bool = True) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [_info(s.name, s.dtype, s.shape) for s in signature.inputs]
            + [_info(s.input, s.dtype, s.shape) for s in signature.states],
            [_info(s.name, s.dtype, s.shape) for s in signature.outputs]
            + [_info(s.output, s.dtype, s.shape) for s in signature.states],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        if described:
            helper.set_model_props(model, {signatures.METADATA_KEY: signatures.dumps(signature)})
        onnx.checker.check_model(model)
        return model


def _info(name: str, dtype: str, shape: Sequence[int]) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, [None if size < 0 else size for size in shape])


def recurrent(
    op: str = "LSTM",
    *,
    features: int = 3,
    hidden: int = 5,
    layers: int = 1,
    outputs: int = 2,
    input_time: int = 1,
    state_axis: int = 1,
    opset: int = 17,
    check: StateCheck = StateCheck.STATE_CHECK_FINITE,
    feedback: bool = False,
    start: float = 0.0,
    direction: str = "forward",
    seed: int = 0,
) -> tuple[onnx.ModelProto, Signature]:
    """A stack of recurrent cells and a linear head.

    Inputs are [N, T, F] for input_time 1, [T, N, F] for 0. States are [layers, N, H], [N, layers, H] or
    [layers, H, N] for state_axis 1, 0, 2.
    """
    b, names = Builder(seed), ["h", "c"] if op == "LSTM" else ["h"]
    shape = [layers, hidden]
    shape.insert(state_axis, -1)
    batch, sizes = 1 - input_time, {0: features, 1: outputs}
    signature = Signature(
        format=1,
        inputs=[
            TensorSpec(name="x", dtype="float32", shape=[-1, -1, sizes[0]], batch_axis=batch, time_axis=input_time)
        ],
        outputs=[
            TensorSpec(name="y", dtype="float32", shape=[-1, -1, outputs], batch_axis=batch, time_axis=input_time)
        ],
        states=[
            StateSpec(
                input=n,
                output=f"{n}_out",
                dtype="float32",
                shape=shape,
                batch_axis=state_axis,
                check=check,
                start=[start],
            )
            for n in names
        ],
        feedback=[Feedback(output="y", input="x")] if feedback else [],
    )
    inward = {0: [1, 0, 2], 1: [0, 1, 2], 2: [0, 2, 1]}[state_axis]
    value = "x" if input_time == 0 else b.add("Transpose", ["x"], perm=[1, 0, 2])
    olds = {n: b.add("Transpose", [n], perm=inward) for n in names}
    news: dict[str, list[str]] = {n: [] for n in names}
    gates, directions = _GATES[op], 2 if direction == "bidirectional" else 1
    for layer in range(layers):
        width = features if layer == 0 else hidden
        w, r = b.weight(directions, gates * hidden, width), b.weight(directions, gates * hidden, hidden)
        bias = b.weight(directions, 2 * gates * hidden)
        place = [b.constant(np.asarray([layer + i], np.int64)) for i in (0, 1)]
        axis = b.constant(np.asarray([0], np.int64))
        first = [b.add("Slice", [olds[n], *place, axis]) for n in names]
        if directions == 2:
            first = [b.add("Concat", [f, f], axis=0) for f in first]
        extra = {"linear_before_reset": 1} if op == "GRU" else {}
        result = b.add(
            op, [value, w, r, bias, "", *first], 1 + len(names), hidden_size=hidden, direction=direction, **extra
        )
        for n, new in zip(names, result[1:], strict=True):
            if directions == 2:
                new = b.add("Slice", [new, *(b.constant(np.asarray([i], np.int64)) for i in (0, 1, 0))])
            news[n].append(new)
        if directions == 2:
            value = b.add("ReduceSum", [result[0], b.constant(np.asarray([1], np.int64))], keepdims=0)
        elif opset < 13:
            value = b.add("Squeeze", [result[0]], axes=[1])
        else:
            value = b.add("Squeeze", [result[0], b.constant(np.asarray([1], np.int64))])
    for n in names:
        joined = b.add("Concat", news[n], axis=0)
        b.add("Transpose", [joined], [f"{n}_out"], perm=[inward.index(i) for i in range(3)])
    head = b.add("Add", [b.add("MatMul", [value, b.weight(hidden, outputs)]), b.weight(outputs)])
    b.add("Transpose", [head], ["y"], perm=[0, 1, 2] if input_time == 0 else [1, 0, 2])
    return b.model(signature, opset), signature


def counter() -> tuple[onnx.ModelProto, Signature]:
    """One step a run: y = x + steps so far; the count is a whole number, one a row."""
    b = Builder()
    b.add("Add", ["count", b.constant(np.asarray(1, np.int64))], ["count_out"])
    column = b.add("Reshape", [b.add("Cast", ["count"], to=TensorProto.FLOAT), b.constant(np.asarray([-1, 1]))])
    b.add("Add", ["x", column], ["y"])
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="x", dtype="float32", shape=[-1, 2], batch_axis=0)],
        outputs=[TensorSpec(name="y", dtype="float32", shape=[-1, 2], batch_axis=0)],
        states=[StateSpec(input="count", output="count_out", dtype="int64", shape=[-1], batch_axis=0, start=[7])],
    )
    return b.model(signature), signature


def delay() -> tuple[onnx.ModelProto, Signature]:
    """One step a run: y = x − the x before; the new state depends on no old one."""
    b = Builder()
    b.add("Sub", ["x", "last"], ["y"])
    b.add("Identity", ["x"], ["last_out"])
    b.add("Identity", ["mark"], ["mark_out"])
    spec = {"dtype": "float32", "shape": [-1, 3], "batch_axis": 0}
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="x", **spec)],  # type: ignore[arg-type]
        outputs=[TensorSpec(name="y", **spec)],  # type: ignore[arg-type]
        states=[
            StateSpec(input="last", output="last_out", check=StateCheck.STATE_CHECK_OFF, **spec),  # type: ignore[arg-type]
            StateSpec(input="mark", output="mark_out", dtype="bool", shape=[-1, 2, 2], batch_axis=0),
        ],
    )
    return b.model(signature), signature


def average(
    dtype: str = "float16", check: StateCheck = StateCheck.STATE_CHECK_FINITE
) -> tuple[onnx.ModelProto, Signature]:
    """One step a run: mean = (mean + x) / 2, in the middle of three axes; answers the mean."""
    b = Builder()
    moved = b.add("Transpose", ["x"], perm=[1, 0, 2])
    total = b.add("Add", [b.add("Mul", ["mean", b.constant(np.asarray(0.5, dtype))]), moved])
    b.add("Identity", [total], ["mean_out"])
    b.add("Transpose", [total], ["y"], perm=[1, 0, 2])
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="x", dtype=dtype, shape=[-1, 2, 20], batch_axis=0)],
        outputs=[TensorSpec(name="y", dtype=dtype, shape=[-1, 2, 20], batch_axis=0)],
        states=[StateSpec(input="mean", output="mean_out", dtype=dtype, shape=[2, -1, 20], batch_axis=1, check=check)],
        feedback=[Feedback(output="y", input="x")],
    )
    return b.model(signature), signature


def attending() -> tuple[onnx.ModelProto, Signature]:
    """One step a run: h = tanh(h + x + mean of memory), which an encoder gave and the graph hands through."""
    b = Builder()
    mean = b.add("ReduceMean", ["memory"], axes=[0], keepdims=0)
    total = b.add("Tanh", [b.add("Add", [b.add("Add", ["h", "x"]), mean])], ["h_out"])
    b.add("Identity", [total], ["y"])
    b.add("Identity", [b.add("Identity", ["memory"])], ["memory_out"])
    spec: dict[str, Any] = {"dtype": "float32", "shape": [-1, 4], "batch_axis": 0}
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="x", **spec)],
        outputs=[TensorSpec(name="y", **spec)],
        states=[
            StateSpec(input="h", output="h_out", from_encoder="h", **spec),
            StateSpec(
                input="memory",
                output="memory_out",
                from_encoder="memory",
                dtype="float32",
                shape=[3, -1, 4],
                batch_axis=1,
                start=[0.5],
            ),
        ],
    )
    return b.model(signature), signature


def lonely() -> tuple[onnx.ModelProto, Signature]:
    """No batch axis: y [T, 2] = x + state, the state adds the last x."""
    b = Builder()
    b.add("Add", ["x", "total"], ["y"])
    last = b.add("Gather", ["x", b.constant(np.asarray(-1, np.int64))], axis=0)
    b.add("Add", ["total", b.add("Mul", [last, b.constant(np.asarray(0, np.float32))])], ["total_out"])
    spec = {"dtype": "float32", "shape": [-1, 2], "time_axis": 0}
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="x", **spec)],  # type: ignore[arg-type]
        outputs=[TensorSpec(name="y", **spec)],  # type: ignore[arg-type]
        states=[StateSpec(input="total", output="total_out", dtype="float32", shape=[2], start=[1, 2])],
    )
    return b.model(signature), signature


def lookup(*, batched: bool = True) -> tuple[onnx.ModelProto, Signature]:
    """One step a run: y = table[token] + steps so far, counted in five data types; a token beyond 4 fails the run.

    The counts depend on no token: only an output shows that one was refused.
    """
    b, dtypes = Builder(), ("float32", "int64", "float64", "float16", "bool")
    spec: dict[str, Any] = {"shape": [-1, 1], "batch_axis": 0} if batched else {"shape": [1]}
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="token", dtype="int64", **spec)],
        outputs=[TensorSpec(name="y", dtype="float32", **spec)],
        states=[StateSpec(input=d, output=f"{d}_out", dtype=d, **spec) for d in dtypes],
    )
    total = b.add("Gather", [b.constant(np.asarray([0, 1000, 2000, 3000, 4000], np.float32)), "token"])
    for dtype in dtypes:
        if dtype == "bool":
            b.add("Not", [dtype], [f"{dtype}_out"])
        else:
            b.add("Add", [dtype, b.constant(np.ones(1, dtype))], [f"{dtype}_out"])
        total = b.add("Add", [total, b.add("Cast", [dtype], to=TensorProto.FLOAT)])
    b.add("Identity", [total], ["y"])
    return b.model(signature), signature


def save(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    """Writes a model file, its folder too."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, folder / name)
    return folder / name
