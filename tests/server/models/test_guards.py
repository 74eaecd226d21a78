"""Guards: values that would trap, take all memory or never return make the run fail instead, wherever that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from statestream.signature import Signature, StateSpec, TensorSpec
from statestream_server.arrays import Array
from statestream_server.models.graphs import guards, refused
from statestream_server.models.graphs.runtime import Graph, GraphError, providers_for
from statestream_server.models.proof import loading
from tests.server.models import graphs
from tests.support import hostile
from tests.support.hostile import FLOAT, INT64, model, value, weight

CPU = providers_for("cpu")
TYPES = {"int32": TensorProto.INT32, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8, "int16": TensorProto.INT16}
TRAPS = r"divides a whole number by zero, or the smallest one by -1$"


def run(made: onnx.ModelProto, **feeds: Any) -> Array:
    graph = Graph(guards.guarded(made).SerializeToString(), CPU)
    return graph.run(feeds, [made.graph.output[0].name])[0]


def dividing(op: str, dtype: str, opset: int = 17, **more: Any) -> onnx.ModelProto:
    kind = TYPES[dtype]
    node = helper.make_node(op, ["a", "b"], ["y"], name="there", **more)
    return model([node], [value("a", kind, ["n"]), value("b", kind, ["n"])], [value("y", kind, ["n"])], opset=opset)


def in_condition(made: onnx.ModelProto) -> onnx.ModelProto:
    """The same nodes as the branches of an If."""
    branches = []
    for mark in "tf":
        nodes = [
            helper.make_node(n.op_type, n.input, [f"{mark}{o}" for o in n.output], name=n.name) for n in made.graph.node
        ]
        branches.append(helper.make_graph(nodes, mark, [], [helper.make_empty_tensor_value_info(f"{mark}y")]))
    node = helper.make_node("If", ["which"], ["y"], then_branch=branches[0], else_branch=branches[1])
    return model([node], [*made.graph.input, value("which", TensorProto.BOOL, [])], made.graph.output)


def in_function(made: onnx.ModelProto) -> onnx.ModelProto:
    """The same nodes as a function of the model's own."""
    names = [one.name for one in made.graph.input]
    whole = model([helper.make_node("Own", names, ["y"], domain="own")], made.graph.input, made.graph.output)
    whole.opset_import.append(helper.make_opsetid("own", 1))
    body = helper.make_function("own", "Own", names, ["y"], made.graph.node, [helper.make_opsetid("", 17)])
    whole.functions.append(body)
    return whole


def in_loop(made: onnx.ModelProto) -> onnx.ModelProto:
    """The same nodes as what a loop does once."""
    kind = made.graph.input[0].type.tensor_type.elem_type
    nodes = [
        *made.graph.node,
        helper.make_node("Identity", ["c"], ["goes"]),
        helper.make_node("Identity", ["y"], ["out"]),
    ]
    body = helper.make_graph(
        nodes,
        "turn",
        [value("i", INT64, []), value("c", TensorProto.BOOL, []), value("v", kind, ["n"])],
        [value("goes", TensorProto.BOOL, []), value("out", kind, ["n"])],
    )
    loop = helper.make_node("Loop", ["once", "true", "a"], ["end"], body=body)
    return model([loop], made.graph.input, [value("end", kind, ["n"])], [weight("once", 1), weight("true", True)])


PLACES: dict[str, tuple[Callable[[onnx.ModelProto], onnx.ModelProto], dict[str, Any]]] = {
    "graph": (lambda made: made, {}),
    "condition": (in_condition, {"which": np.asarray(True)}),
    "function": (in_function, {}),
    "loop": (in_loop, {}),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_whole_numbers_over_zero_are_refused_wherever_they_stand(op: str, dtype: str, place: str) -> None:
    wrap, more = PLACES[place]
    made = wrap(dividing(op, dtype))
    a, zero = np.asarray([7, 9, 4], dtype), np.asarray([2, 0, 1], dtype)
    with pytest.raises(GraphError, match=f"^{op} 'there.*' {TRAPS}"):
        run(made, a=a, b=zero, **more)
    right = np.asarray([2, 4, 3], dtype)
    expected = a // right if op == "Div" else a % right
    assert run(made, a=a, b=right, **more).tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize(("op", "more"), [("Div", {}), ("Mod", {}), ("Mod", {"fmod": 1})])
def test_the_smallest_number_over_minus_one_is_refused(op: str, more: dict[str, int], dtype: str) -> None:
    smallest = np.asarray([np.iinfo(dtype).min], dtype)
    with pytest.raises(GraphError, match=TRAPS):
        run(dividing(op, dtype, **more), a=smallest, b=np.asarray([-1], dtype))
    assert run(dividing(op, dtype, **more), a=smallest + 1, b=np.asarray([-1], dtype)).shape == (1,)


@given(st.lists(st.tuples(*[st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 2)] * 2), min_size=1, max_size=8))
def test_a_guard_changes_no_quotient(pairs: list[tuple[int, int]]) -> None:
    a, b = np.asarray(pairs, np.int64).T
    traps = bool(((b == 0) | ((a == -(2**63)) & (b == -1))).any())
    try:
        found = DIVIDER.run({"a": a, "b": b}, ["y"])[0]
    except GraphError as error:
        assert traps, error  # noqa: PT017
        return
    assert not traps
    assert found.tolist() == [int(abs(x) // abs(y)) * (1 if (x < 0) == (y < 0) else -1) for x, y in pairs]


DIVIDER = Graph(guards.guarded(dividing("Div", "int64")).SerializeToString(), CPU)


def test_no_rows_are_divided_as_ever() -> None:
    assert run(dividing("Div", "int64"), a=np.empty(0, np.int64), b=np.empty(0, np.int64)).shape == (0,)


def test_floats_and_divisors_that_are_known_need_no_guard() -> None:
    float_division = model([helper.make_node("Div", ["x", "x"], ["y"])])
    by_three = model(
        [helper.make_node("Div", ["x", "three"], ["y"])],
        [value("x", INT64, ["n"])],
        [value("y", INT64, ["n"])],
        [weight("three", 3)],
    )
    for made in (float_division, by_three, graphs.recurrent("LSTM")[0]):
        assert guards.guarded(made) is made


def test_where_the_types_are_told_by_nobody_the_graph_finds_out() -> None:
    """An operator of ONNX Runtime's own between input and division: shape inference knows nothing of it."""
    for dtype, kind in (("float32", FLOAT), ("int64", INT64)):
        nodes = [helper.make_node("Unknown", ["b"], ["c"], domain="own"), helper.make_node("Div", ["c", "c"], ["d"])]
        made = model(nodes, [value("b", kind, ["n"])], [helper.make_empty_tensor_value_info("d")])
        safe = guards.guarded(made)
        assert safe is not made
        for node in safe.graph.node:
            if node.op_type == "Unknown":
                node.op_type, node.domain = "Identity", ""
        graph = Graph(safe.SerializeToString(), CPU)
        if dtype == "float32":
            assert np.isnan(graph.run({"b": np.zeros(1, np.float32)}, ["d"])[0]).all()
            assert graph.run({"b": np.full(1, 0.25, np.float32)}, ["d"])[0] == 1
        else:
            with pytest.raises(GraphError, match=TRAPS):
                graph.run({"b": np.zeros(1, np.int64)}, ["d"])
    made.opset_import[0].version = 14
    with pytest.raises(refused.GuardError, match="cannot tell whether Div 'd' divides whole numbers.*opset 15"):
        guards.guarded(made)


def sized(op: str, inputs: Sequence[str], weights: Sequence[onnx.TensorProto], **more: Any) -> onnx.ModelProto:
    taken = [value("s", INT64, more.pop("shape", ["r"]))]
    node = helper.make_node(op, inputs, ["y"], name="there", **more)
    return model([node], taken, [helper.make_empty_tensor_value_info("y")], weights, opset=18)


ONE, MANY = weight("v", np.ones(4, np.float32)), 2**31
SIZED: dict[str, tuple[onnx.ModelProto, Any, Any]] = {
    "ConstantOfShape": (sized("ConstantOfShape", ["s"], []), [MANY], [3]),
    "Expand": (sized("Expand", ["v", "s"], [weight("v", np.ones(1, np.float32))]), [MANY], [3]),
    "Tile": (sized("Tile", ["v", "s"], [ONE]), [MANY], [3]),
    "Pad": (sized("Pad", ["v", "s"], [ONE]), [MANY, 0], [1, 2]),
    "OneHot": (
        sized("OneHot", ["i", "s", "v"], [weight("i", np.asarray([1])), weight("v", np.asarray([0, 1]))], shape=[1]),
        [MANY],
        [3],
    ),
    "Range": (sized("Range", ["z", "s", "o"], [weight("z", 0), weight("o", 1)], shape=[]), MANY, 3),
    "two axes": (sized("ConstantOfShape", ["s"], []), [2**33, 2**33], [2, 2]),
}


@pytest.mark.parametrize("name", SIZED)
def test_arrays_whose_size_values_decide_have_a_most(name: str) -> None:
    made, many, few = SIZED[name]
    with pytest.raises(GraphError, match=f"'there' would make an array of more than {guards.MOST_ELEMENTS} numbers$"):
        run(made, s=np.asarray(many, np.int64))
    assert run(made, s=np.asarray(few, np.int64)).size > 0


def test_sizes_that_come_from_shapes_need_no_guard() -> None:
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("ConstantOfShape", ["s"], ["y"])]
    made = model(nodes)
    assert guards.guarded(made) is made


def loop(trips: str, goes_on: str) -> onnx.ModelProto:
    """Counts turns in v; `trips` and `goes_on` name the loop's two limits."""
    body = helper.make_graph(
        [
            helper.make_node("Add", ["v", "one"], ["out"]),
            helper.make_node("Less", ["out", "end"] if goes_on == "value" else ["out", "never"], ["goes"]),
        ],
        "turn",
        [value("i", INT64, []), value("c", TensorProto.BOOL, []), value("v", INT64, [])],
        [value("goes", TensorProto.BOOL, []), value("out", INT64, [])],
    )
    node = helper.make_node("Loop", [trips, "true", "zero"], ["y"], body=body, name="there")
    return model(
        [node],
        [value("m", INT64, []), value("end", INT64, [])],
        [value("y", INT64, [])],
        [weight(n, v) for n, v in (("one", 1), ("zero", 0), ("true", True), ("never", 2**62), ("huge", 2**62))],
    )


@pytest.mark.parametrize(("trips", "goes_on"), [("m", "never"), ("huge", "value"), ("", "value")])
def test_loops_that_values_end_have_a_most(trips: str, goes_on: str) -> None:
    made, many = loop(trips, goes_on), np.asarray(2**40)
    with pytest.raises(GraphError, match=rf"^Loop 'there' .*more than {guards.MOST_TURNS} times$"):
        run(made, m=many, end=many)
    assert run(made, m=np.asarray(5), end=np.asarray(5)) == 5


def whole_counter(opset: int = 17) -> onnx.ModelProto:
    """s' = s + x, y = 100 / s': a state that reaches zero is divided by."""
    b, shape = graphs.Builder(), [-1, 1]
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="x", dtype="int64", shape=shape, batch_axis=0)],
        outputs=[TensorSpec(name="y", dtype="int64", shape=shape, batch_axis=0)],
        states=[StateSpec(input="s", output="s_out", dtype="int64", shape=shape, batch_axis=0, start=[5])],
    )
    b.add("Add", ["s", "x"], ["s_out"])
    b.add("Div", [b.constant(np.asarray(100, np.int64)), "s_out"], ["y"])
    return b.model(signature, opset=opset)


@pytest.mark.parametrize("opset", [17, 10])
def test_rows_refuse_such_values_too_and_keep_their_state(tmp_path: Path, opset: int) -> None:
    """Rows that the graph commits, and with an old opset those that NumPy does."""
    graphs.save(whole_counter(opset), tmp_path)
    loaded = loading.load("m", 1, tmp_path, device="cpu")
    assert loaded.rows is not None
    assert (type(loaded.rows).__name__ == "NumpyRows") == (opset == 10)
    loaded.rows.grow(4)
    row = np.asarray([1])
    loaded.rows.reset(row)
    with pytest.raises(GraphError, match=r"^Div .*divides a whole number by zero"):
        loaded.rows.step(row, row, [np.asarray([[[-5]]])])
    assert loaded.rows.read(row)[0].tolist() == [[5]]
    outputs, _ = loaded.rows.step(row, row, [np.asarray([[[5]]])])
    assert outputs[0].tolist() == [[[10]]]


def test_a_graph_whose_weights_lie_apart_is_guarded_as_well(tmp_path: Path) -> None:
    made = dividing("Div", "int64")
    made.graph.node.append(helper.make_node("ReduceMax", ["w"], ["most"], keepdims=0))
    made.graph.node.append(helper.make_node("Add", ["y", "most"], ["z"]))
    made.graph.output[0].name = "z"
    made.graph.initializer.append(weight("w", np.arange(1, 401, dtype=np.int64)))
    (tmp_path / "1").mkdir()
    onnx.save_model(made, tmp_path / "1" / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=9)
    (tmp_path / "1" / "model.toml").write_text("stateless = true\n")  # Either input could be memory by its type.
    loaded = loading.load("m", 1, tmp_path / "1", device="cpu")
    assert loaded.graph is not None
    four = np.full(3, 4)
    assert loaded.graph.predict([four, four])[0].tolist() == [401] * 3
    with pytest.raises(GraphError, match=TRAPS):
        loaded.graph.predict([four, four * 0])


def test_the_error_is_the_guards_own_words_only_where_a_guard_spoke() -> None:
    assert refused.explained("Name:'guard: Div 'a' does so #12' Status") == "Div 'a' does so"
    assert refused.explained("Name:'other' Status") == "Name:'other' Status"
    assert hostile.FLOAT == FLOAT
