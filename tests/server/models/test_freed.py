"""Freed batches: each operator keeps sessions apart, or the batch stays 1; never is an answer another one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statestream_server.arrays import Array
from statestream_server.models.form import surgery
from statestream_server.models.form.draft import Draft, drafted
from statestream_server.models.form.places import BoundError
from statestream_server.models.form.surgery import Change
from statestream_server.models.form.told import Told
from statestream_server.models.graphs.runtime import Graph, providers_for
from statestream_server.models.proof import batches, making
from tests.server.models import graphs
from tests.server.models.form_zoo import Value, ints, model
from tests.server.models.graphs import Builder

_ROWS = 3


class Source:
    """A file in memory."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto

    def graph(self, changes: Sequence[Change]) -> Graph:
        return self.load(self.model(changes))

    def model(self, changes: Sequence[Change]) -> onnx.ModelProto:
        return surgery.applied(self.proto, changes)

    def load(self, model: onnx.ModelProto) -> Graph:
        return Graph(model.SerializeToString(), providers_for("cpu"))


def freed(proto: onnx.ModelProto) -> tuple[Draft, Source]:
    draft = drafted(proto, Told(states={"s": "s_out"}))
    source = Source(proto)
    return batches.widened(draft, source), source


def agrees(proto: onnx.ModelProto) -> bool:
    """Whether several sessions in one run of the freed graph are as each by itself in the file as it is."""
    draft, source = freed(proto)
    alone, together = source.load(proto), source.graph(draft.changes)
    rng, feeds = np.random.default_rng(1), dict[str, list[Array]]()
    axes = {change.name: int(change.values[0]) for change in draft.changes if change.kind == "free"}
    for each in (*draft.inputs, *(held.old for held in draft.states)):
        shape = [1 if axis == axes[each.name] else int(size or 0) for axis, size in enumerate(each.dims or ())]
        feeds[each.name] = [rng.standard_normal(shape).astype(each.dtype) for _ in range(_ROWS)]
    names = [each.name for each in draft.outputs] + [held.new for held in draft.states]
    joined = together.run({name: np.concatenate(rows, axes[name]) for name, rows in feeds.items()}, names)
    single = [alone.run({name: rows[row] for name, rows in feeds.items()}, names) for row in range(_ROWS)]
    return all(
        np.allclose(value, np.concatenate([results[n] for results in single], axes[name]), rtol=1e-4, atol=1e-5)
        for n, (name, value) in enumerate(zip(names, joined, strict=True))
    )


def net(shape: Sequence[int], build: Callable[[Builder, str], str], made: Sequence[int], opset: int = 17) -> Any:
    """A graph in which something is done with `x`, and a state of its kind that is added before."""
    b = Builder(3)
    b.add("Tanh", [b.add("Add", ["x", "s"])], ["s_out"])
    b.add("Identity", [build(b, "s_out")], ["y"])
    f = "float32"
    values: list[Value] = [("x", f, shape), ("s", f, shape)]
    return model(b, values, [("y", f, made), ("s_out", f, shape)], opset)


FREE: Mapping[str, Any] = {
    "Reshape to the left": net((1, 2, 6), lambda b, v: b.add("Reshape", [v, ints(b, 1, 12)]), (1, 12)),
    "Reshape with a 0": net((1, 2, 6), lambda b, v: b.add("Reshape", [v, ints(b, 0, -1)]), (1, 12)),
    "Reshape of another 0": net((2, 1, 6), lambda b, v: b.add("Reshape", [v, ints(b, 2, 0, 3, 2)]), (2, 1, 3, 2)),
    "Reshape between": net((2, 1, 6), lambda b, v: b.add("Reshape", [v, ints(b, 2, 1, 3, 2)]), (2, 1, 3, 2)),
    "Reshape with -1": net((1, 2, 6), lambda b, v: b.add("Reshape", [v, ints(b, 1, -1)]), (1, 12)),
    "merged and back": net(
        (1, 2, 6),
        lambda b, v: b.add(
            "Reshape",
            [b.add("MatMul", [b.add("Reshape", [v, ints(b, 2, 6)]), b.weight(6, 3)]), ints(b, 1, -1, 3)],
        ),
        (1, 2, 3),
    ),
    "heads": net(
        (1, 4, 6),
        lambda b, v: b.add(
            "MatMul",
            [q := b.add("Transpose", [b.add("Reshape", [v, ints(b, 1, 4, 2, 3)])], perm=[0, 2, 1, 3]),
             b.add("Transpose", [q], perm=[0, 1, 3, 2])],
        ),
        (1, 2, 4, 4),
    ),
    "Flatten": net((1, 2, 3), lambda b, v: b.add("Flatten", [v]), (1, 6)),
    "Gather": net((1, 4, 3), lambda b, v: b.add("Gather", [v, ints(b, 2, 0)], axis=1), (1, 2, 3)),
    "a number of Gather": net(
        (2, 1, 3), lambda b, v: b.add("Gather", [v, b.constant(np.asarray(1, np.int64))], axis=0), (1, 3)
    ),
    "Slice": net((1, 4, 3), lambda b, v: b.add("Slice", [v, ints(b, 0, 1), ints(b, 1 << 62, 3)]), (1, 2, 3)),
    "Split": net((1, 4, 3), lambda b, v: b.add("Split", [v], 2, axis=1)[1], (1, 2, 3)),
    "ReduceMean": net((1, 4, 3), lambda b, v: b.add("ReduceMean", [v], axes=[1], keepdims=0), (1, 3)),
    "ReduceSum behind": net((1, 1, 3), lambda b, v: b.add("ReduceSum", [v, ints(b, -1)], keepdims=1), (1, 1, 1)),
    "Softmax": net((1, 4, 3), lambda b, v: b.add("Softmax", [v], axis=-1), (1, 4, 3)),
    "Softmax of old": net((1, 4, 3), lambda b, v: b.add("Softmax", [v]), (1, 4, 3), 11),
    "Conv": net((1, 2, 6), lambda b, v: b.add("Conv", [v, b.weight(3, 2, 3)]), (1, 3, 4)),
    "Gemm turned": net((1, 4), lambda b, v: b.add("Gemm", [b.add("Transpose", [v]), b.weight(4, 2)], transA=1), (1, 2)),
    "Gemm from the right": net(
        (1, 4), lambda b, v: b.add("Gemm", [b.weight(2, 4), v, b.weight(2, 1)], transB=1), (2, 1)
    ),
    "MatMul with a vector": net((1, 2, 4), lambda b, v: b.add("MatMul", [v, b.weight(4)]), (1, 2)),
    "MatMul from the left": net((1, 4, 3), lambda b, v: b.add("MatMul", [b.weight(2, 4), v]), (1, 2, 3)),
    "Einsum": net((1, 4, 3), lambda b, v: b.add("Einsum", [v, b.weight(3, 5)], equation="btd,dk->btk"), (1, 4, 5)),
    "Pad": net((1, 4), lambda b, v: b.add("Pad", [v, ints(b, 0, 1, 0, 2)]), (1, 7)),
    "Tile": net((1, 4), lambda b, v: b.add("Tile", [v, ints(b, 1, 2)]), (1, 8)),
    "Expand": net((1, 1, 4), lambda b, v: b.add("Expand", [v, ints(b, 1, 3, 4)]), (1, 3, 4)),
    "LayerNormalization": net(
        (1, 2, 4), lambda b, v: b.add("LayerNormalization", [v, b.weight(4)]), (1, 2, 4)
    ),
    "TopK": net((1, 4), lambda b, v: b.add("TopK", [v, ints(b, 2)], 2)[0], (1, 2)),
    "CumSum": net((1, 4), lambda b, v: b.add("CumSum", [v, b.constant(np.asarray(1, np.int64))]), (1, 4)),
    "a constant joined": net((1, 4), lambda b, v: b.add("Concat", [v, b.weight(1, 2)], axis=1), (1, 6)),
    "a shape that is computed": net(
        (1, 2, 6),
        lambda b, v: b.add("Reshape", [v, b.add("Concat", [
            b.add("Gather", [b.add("Shape", [v]), ints(b, 0)]), ints(b, -1)], axis=0)]),
        (1, 12),
    ),
}  # fmt: skip

BOUND: Mapping[str, tuple[Any, str]] = {
    "all axes of 1 squeezed": (net((1, 3), lambda b, v: b.add("Squeeze", [v]), (3,)), "Squeeze .* works across"),
    "a mean over sessions": (
        net((1, 3), lambda b, v: b.add("ReduceMean", [v], axes=[0]), (1, 3)), "ReduceMean .* works across the axis"),
    "a mean over all": (
        net((1, 3), lambda b, v: b.add("Unsqueeze", [b.add("ReduceMax", [v], keepdims=0), ints(b, 0)]), (1,)),
        "ReduceMax .* works across"),
    "the first session": (
        net((1, 3), lambda b, v: b.add("Gather", [v, ints(b, 0)], axis=0), (1, 3)), "Gather .* works across"),
    "a softmax over sessions": (net((1, 3), lambda b, v: b.add("Softmax", [v], axis=0), (1, 3)), "Softmax .* across"),
    "a product over sessions": (
        net((1, 3), lambda b, v: b.add("MatMul", [b.add("Transpose", [v]), v]), (3, 3)), "MatMul .* works across"),
    "steps before sessions": (
        net((2, 1, 3), lambda b, v: b.add("Reshape", [v, ints(b, 1, 2, 3)]), (1, 2, 3)), "something else along"),
    "a scale over all": (
        net((1, 3), lambda b, v: b.add("Cast", [b.add("DynamicQuantizeLinear", [v], 3)[0]], to=1), (1, 3)),
        "nothing is known of DynamicQuantizeLinear"),
    "a table of sessions": (
        net((1, 3), lambda b, v: b.add("Mul", [v, b.add("Gather", [b.weight(4, 1, 3), ints(b, 1)])]), (1, 1, 3)), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", FREE)
def test_an_operator_that_keeps_sessions_apart_is_freed(name: str) -> None:
    assert agrees(FREE[name])


@pytest.mark.parametrize("name", BOUND)
def test_one_that_does_not_keeps_its_batch_of_1_or_is_right(name: str) -> None:
    proto, why = BOUND[name]
    if not why:
        assert agrees(proto)
        return
    with pytest.raises(BoundError, match=why):
        freed(proto)


def test_where_rounding_differs_a_person_decides(tmp_path: Path) -> None:
    """An RNN of ONNX Runtime with 50 hidden units or more has other bits in a batch of one."""
    b, f = Builder(6), "float32"
    steps = b.add("Unsqueeze", ["x", ints(b, 0)])
    b.add("RNN", [steps, b.weight(1, 64, 8), b.weight(1, 64, 64), "", "", "s"], [b.name(), "s_out"], hidden_size=64)
    b.add("Squeeze", ["s_out", ints(b, 0)], ["y"])
    state: Value = ("s", f, [1, 1, 64])
    proto = model(b, [("x", f, [1, 8]), state], [("y", f, [1, 64]), ("s_out", f, [1, 1, 64])])
    path = graphs.save(proto, tmp_path)
    found = making.prove(path, providers_for("cpu")).plan
    assert found is not None
    assert "together rows have other bits than one by one" in dict(found["notes"])["one at a time"]
    (tmp_path / "model.toml").write_text("shapes = { x = ['batch', 8] }")
    found = making.prove(path, providers_for("cpu")).plan
    assert found is not None
    assert "one at a time" not in dict(found["notes"])
    assert ["surgery", "the batch of 1 became one of any length"] in found["notes"]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_what_is_freed_is_as_one_by_one_whatever_shapes_go_through_it(data: st.DataObject) -> None:
    """Chains of operators that move axes about: many of them are refused, none that is freed is wrong."""
    shape = data.draw(st.permutations([1, data.draw(st.integers(1, 3)), 4]))

    def build(b: Builder, value: str) -> str:
        now = list(shape)
        for _ in range(data.draw(st.integers(1, 5))):
            kind = data.draw(st.sampled_from(["Transpose", "Reshape", "Unsqueeze", "MatMul", "Reduce", "Softmax"]))
            if kind == "Transpose":
                perm = data.draw(st.permutations(range(len(now))))
                value, now = b.add("Transpose", [value], perm=perm), [now[axis] for axis in perm]
            elif kind == "Reshape":
                sizes = _factors(data, int(np.prod(now)))
                target = [*sizes]
                if data.draw(st.booleans()):
                    target[data.draw(st.integers(0, len(target) - 1))] = -1
                value, now = b.add("Reshape", [value, ints(b, *target)]), sizes
            elif kind == "Unsqueeze" and len(now) < 5:
                axis = data.draw(st.integers(0, len(now)))
                value, now = b.add("Unsqueeze", [value, ints(b, axis)]), [*now[:axis], 1, *now[axis:]]
            elif kind == "MatMul" and len(now) > 1:
                value, now = b.add("MatMul", [value, b.weight(now[-1], 2)]), [*now[:-1], 2]
            elif kind == "Reduce" and len(now) > 1:
                axis = data.draw(st.integers(0, len(now) - 1))
                value = b.add("ReduceSum", [value, ints(b, axis)], keepdims=0)
                now = [*now[:axis], *now[axis + 1 :]]
            elif kind == "Softmax":
                value = b.add("Softmax", [value], axis=data.draw(st.integers(0, len(now) - 1)))
        made[:] = now
        return value

    made = list[int]()
    b = Builder(4)
    b.add("Tanh", [b.add("Add", ["x", "s"])], ["s_out"])
    b.add("Identity", [build(b, "s_out")], ["y"])
    f = "float32"
    proto = model(b, [("x", f, shape), ("s", f, shape)], [("y", f, made), ("s_out", f, shape)])
    with contextlib.suppress(BoundError):
        assert agrees(proto)


def _factors(data: st.DataObject, total: int) -> list[int]:
    """Lengths whose product is a number."""
    found = list[int]()
    while total > 1 and len(found) < 3:
        factor = data.draw(st.sampled_from([n for n in range(1, total + 1) if total % n == 0]))
        found.append(factor)
        total //= factor
    return [*found, total]
