"""Hiding: which inputs' NaN and infinity are looked for, because inside they would become ordinary numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from statestream.signature import Signature, StateCheck, StateSpec, TensorSpec
from statestream_server.models.graphs.runtime import providers_for
from statestream_server.models.proof import hiding, loading
from statestream_server.models.proof.draws import Draws
from tests.server.models import graphs

CPU = providers_for("cpu")


def policy(deals: str = "", *, check: StateCheck = StateCheck.STATE_CHECK_FINITE) -> tuple[onnx.ModelProto, Signature]:
    """A GRU over x, whose outputs a mask is added to. `deals`: how the model itself meets x that is no number."""
    b = graphs.Builder()
    signature = Signature(
        format=1,
        inputs=[
            TensorSpec(name="x", dtype="float32", shape=[-1, 3], batch_axis=0),
            TensorSpec(name="mask", dtype="float32", shape=[-1, 5], batch_axis=0),
        ],
        outputs=[TensorSpec(name="y", dtype="float32", shape=[-1, 5], batch_axis=0)],
        states=[StateSpec(input="h", output="h_out", dtype="float32", shape=[1, -1, 5], batch_axis=1, check=check)],
    )
    seen, zero, large = "x", b.constant(np.zeros((), np.float32)), b.constant(np.asarray(1e6, np.float32))
    if deals == "IsNaN":
        seen = b.add("Where", [b.add("IsNaN", ["x"]), zero, "x"])
    elif deals == "x == x":
        seen = b.add("Where", [b.add("Equal", ["x", "x"]), "x", zero])
    elif deals == "x != x":
        seen = b.add("Where", [b.add("Not", [b.add("Equal", ["x", "x"])]), zero, "x"])
    elif deals == "range":
        seen = b.add("Where", [b.add("Less", [b.add("Abs", ["x"]), large]), "x", zero])
    steps = b.add("Unsqueeze", [seen, b.constant(np.asarray([0]))])
    weights = [b.weight(1, 15, 3), b.weight(1, 15, 5)]
    all_steps = b.add("GRU", [steps, *weights, "", "", "h"], [b.name(), "h_out"], hidden_size=5)[0]
    b.add("Add", [b.add("Squeeze", [all_steps, b.constant(np.asarray([0, 1]))]), "mask"], ["y"])
    return b.model(signature), signature


@pytest.mark.parametrize(
    ("deals", "hides"),
    [
        ("", {"x": "nan inf"}),
        ("IsNaN", {"x": "inf"}),
        ("x == x", {"x": "inf"}),
        ("x != x", {"x": "inf"}),
        ("range", {}),
    ],
)
def test_what_reaches_the_gates_is_looked_for_and_nothing_else(deals: str, hides: dict[str, str]) -> None:
    model, signature = policy(deals)
    assert hiding.hidden(model, Draws(signature), CPU) == hides


def test_without_a_check_or_without_such_operators_nothing_is_looked_for() -> None:
    for model, signature in (policy(check=StateCheck.STATE_CHECK_OFF), graphs.average("float32")):
        assert hiding.hidden(model, Draws(signature), CPU) == {}


def test_a_function_of_the_models_own_is_looked_into() -> None:
    model, signature = policy()
    (gru,) = [node for node in model.graph.node if node.op_type == "GRU"]
    names = [name for name in gru.input if name]
    body = helper.make_function("own", "Cell", names, list(gru.output), [gru], [helper.make_opsetid("", 17)])
    model.functions.append(body)
    model.opset_import.append(helper.make_opsetid("own", 1))
    call = helper.make_node("Cell", names, list(gru.output), domain="own")
    nodes = [call if node is gru or node == gru else node for node in model.graph.node]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    assert hiding.hidden(model, Draws(signature), CPU) == {"x": "nan inf"}


@pytest.mark.parametrize("deals", ["", "x == x", "range"])
def test_a_served_model_refuses_what_it_would_hide_and_takes_the_rest(tmp_path: Path, deals: str) -> None:
    model, _ = policy(deals)
    rows = loading.load("m", 1, graphs.save(model, tmp_path).parent, device="cpu").rows
    assert rows is not None
    rows.grow(8)

    def bad(**inputs: Any) -> list[bool]:
        row = np.arange(1, 3)
        rows.reset(row)
        given = {"x": np.ones((2, 1, 3), np.float32), "mask": np.zeros((2, 1, 5), np.float32)}
        for name, poison in inputs.items():
            given[name][1, 0, 1] = poison
        return [bool(one) for one in rows.step(row, row, list(given.values()))[1]]

    assert bad() == [False, False]
    assert bad(mask=-np.inf) == [False, False]
    assert bad(mask=np.nan) == [False, False]
    assert bad(x=np.nan) == [False, deals == ""]
    assert bad(x=np.inf) == [False, deals != "range"]
