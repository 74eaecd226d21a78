"""Operators: those that are said to take any values do."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from statestream_server.models.graphs.operators import may_refuse
from statestream_server.models.graphs.runtime import Graph, GraphError, providers_for


def graph(op: str, dtype: str, domain: str = "") -> onnx.ModelProto:
    """y = op(a, b)."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    values = [helper.make_tensor_value_info(name, kind, ["n"]) for name in "aby"]
    node = helper.make_node(op, ["a", "b"], ["y"], domain=domain)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(
        helper.make_graph([node], "graph", values[:2], values[2:]), opset_imports=opsets, ir_version=8
    )


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Mod", "Max", "Pow", "Gather"])
@pytest.mark.parametrize("dtype", ["int32", "int64", "float32"])
def test_what_onnx_runtime_refuses_may_refuse(op: str, dtype: str) -> None:
    model = graph(op, dtype)
    extremes = (np.nan, np.inf, -np.inf) if dtype == "float32" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    numbers = np.asarray([0, -1, 1, *extremes], dtype)
    a, b = (array.ravel() for array in np.meshgrid(numbers, numbers))
    try:
        Graph(model.SerializeToString(), providers_for("cpu")).predict([a, b])
    except GraphError:
        assert may_refuse(model.graph.node[0])


def test_operators_of_other_domains_may_refuse() -> None:
    assert not may_refuse(graph("Add", "int64").graph.node[0])
    assert may_refuse(graph("Add", "int64", "com.example").graph.node[0])
