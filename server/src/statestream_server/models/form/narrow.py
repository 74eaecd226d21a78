"""Narrow numbers: bfloat16, which NumPy lacks and ONNX Runtime only moves: float32 at the edges and in operators.

Every bfloat16 is a float32, so nothing is lost at an edge or in a state. An operator that computes does so in float32
and rounds, as processors with bfloat16 do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from statestream_server.models.form.edits import fresh, made_as, read_as, taken
from statestream_server.models.graphs.operators import inner_graphs

NAME: Final = "bfloat16"
WIDE: Final = "float32"
"""What callers send and get instead."""
_MOVES: Final = frozenset(
    "Cast Concat Constant Flatten Gather Identity If Loop Reshape Scan Shape Size Slice Split Squeeze Transpose"
    " Unsqueeze".split()
)
"""Operators that ONNX Runtime has for bfloat16 on the CPU."""
_NARROW: Final = TensorProto.BFLOAT16


def cast(graph: onnx.GraphProto, name: str) -> None:
    """Makes an input or an output of bfloat16 one of float32.

    Raises:
        KeyError: There is no such one.
    """
    inside = fresh(f"{name}_{NAME}", taken(graph))
    for values, to in ((graph.input, _NARROW), (graph.output, TensorProto.FLOAT)):
        for value in values:
            if value.name == name:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
                read_as(graph.node, name, inside)
                if to == _NARROW:
                    graph.node.insert(0, helper.make_node("Cast", [name], [inside], to=to))
                else:
                    made_as(graph.node, name, inside)
                    graph.node.append(helper.make_node("Cast", [inside], [name], to=to))
                return
    raise KeyError(f"there is no input or output {name!r}")


def computing(model: onnx.ModelProto) -> list[str]:
    """The kinds of operators of a model that compute with bfloat16."""
    if not any(_mentions(model.graph)):
        return []
    typed = _typed(model)
    return sorted(
        {node.op_type for graph, types in _graphs(typed.graph, {}) for node in graph.node if _is_wide(node, types)}
    )


def widen(model: onnx.ModelProto) -> None:
    """Lets what computes with bfloat16 compute in float32 and round."""
    typed = _typed(model)
    used = taken(typed.graph)
    for graph, types in list(_graphs(typed.graph, {})):
        nodes, known = list[onnx.NodeProto](), dict[str, str]()
        for node in graph.node:
            if not _is_wide(node, types):
                nodes.append(node)
                continue
            for place, name in enumerate(node.input):
                if types.get(name) == _NARROW:
                    if name not in known:
                        known[name] = fresh(f"{name}_wide", used)
                        nodes.append(helper.make_node("Cast", [name], [known[name]], to=TensorProto.FLOAT))
                    node.input[place] = known[name]
            _widen_attributes(node)
            nodes.append(node)
            for place, name in enumerate(node.output):
                if types.get(name) == _NARROW:
                    node.output[place] = fresh(f"{name}_exact", used)
                    nodes.append(helper.make_node("Cast", [node.output[place]], [name], to=_NARROW))
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
    model.graph.CopyFrom(typed.graph)
    model.graph.ClearField("value_info")


def _widen_attributes(node: onnx.NodeProto) -> None:
    """The types and values that an operator itself says."""
    for attribute in node.attribute:
        if attribute.name == "dtype" and attribute.i == _NARROW:
            attribute.i = TensorProto.FLOAT
        if attribute.HasField("t") and attribute.t.data_type == _NARROW:
            values = numpy_helper.to_array(attribute.t).astype(np.float32)
            attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))


def _typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the types of all its values, as far as they can be told."""
    return shape_inference.infer_shapes(model)


def _graphs(graph: onnx.GraphProto, outer: Mapping[str, int]) -> Iterator[tuple[onnx.GraphProto, Mapping[str, int]]]:
    """Inner graphs first, each with the types of the values that it sees."""
    types = dict(outer)
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from _graphs(inner, types)
    yield graph, types


def _is_wide(node: onnx.NodeProto, types: Mapping[str, int]) -> bool:
    """Whether a node computes with bfloat16."""
    return node.op_type not in _MOVES and any(types.get(name) == _NARROW for name in (*node.input, *node.output))


def _mentions(graph: onnx.GraphProto) -> Iterator[bool]:
    """Whether bfloat16 is spoken of, at every place where a type stands."""
    yield from (value.type.tensor_type.elem_type == _NARROW for value in (*graph.input, *graph.output))
    yield from (tensor.data_type == _NARROW for tensor in graph.initializer)
    for node in graph.node:
        yield from (entry.i == _NARROW for entry in node.attribute if entry.name in ("to", "dtype"))
        yield from (entry.t.data_type == _NARROW for entry in node.attribute if entry.HasField("t"))
        for inner in inner_graphs(node):
            yield from _mentions(inner)
