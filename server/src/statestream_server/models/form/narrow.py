"""Numbers that ONNX Runtime lacks operators for: they compute in float32, and what comes out has its type again.

bfloat16, which NumPy lacks too and ONNX Runtime only moves, is float32 at the edges as well: every bfloat16 is one, so
nothing is lost there or in a state, and an operator rounds as processors with bfloat16 do. Recurrent layers of float64
are refused by ONNX Runtime, which has them in single precision.
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
_LAYERS: Final = frozenset(("RNN", "GRU", "LSTM"))


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
    """The kinds of operators of a model that have to compute in float32, with the type that they are of."""
    if not any(_mentions(model.graph)):
        return []
    typed, found = _typed(model), set[str]()
    for graph, types in _graphs(typed.graph, {}):
        for node in graph.node:
            if (kind := _lacking(node, types)) is not None:
                found.add(f"{node.op_type} of {helper.tensor_dtype_to_np_dtype(kind).name}")
    return sorted(found)


def widen(model: onnx.ModelProto) -> None:
    """Lets what ONNX Runtime has no operators for compute in float32, and gives what comes out its type again."""
    typed = _typed(model)
    used = taken(typed.graph)
    for graph, types in list(_graphs(typed.graph, {})):
        nodes, known = list[onnx.NodeProto](), dict[str, str]()
        for node in graph.node:
            kind = _lacking(node, types)
            if kind is None:
                nodes.append(node)
                continue
            for place, name in enumerate(node.input):
                if types.get(name) == kind:
                    if name not in known:
                        known[name] = fresh(f"{name}_wide", used)
                        nodes.append(helper.make_node("Cast", [name], [known[name]], to=TensorProto.FLOAT))
                    node.input[place] = known[name]
            _widen_attributes(node)
            nodes.append(node)
            for place, name in enumerate(node.output):
                if name and types.get(name, kind) == kind:
                    node.output[place] = fresh(f"{name}_exact", used)
                    nodes.append(helper.make_node("Cast", [node.output[place]], [name], to=kind))
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


def _lacking(node: onnx.NodeProto, types: Mapping[str, int]) -> int | None:
    """The type with which a node computes and which ONNX Runtime lacks there; None where it has it."""
    given = [types.get(name) for name in (*node.input, *node.output) if name]
    if node.op_type not in _MOVES and _NARROW in given:
        return _NARROW
    if node.op_type in _LAYERS and node.domain in ("", "ai.onnx"):
        return TensorProto.DOUBLE if TensorProto.DOUBLE in given else None
    return None


def _mentions(graph: onnx.GraphProto) -> Iterator[bool]:
    """Whether there may be something to do: at every place where a type stands, and at every recurrent layer."""
    yield from (value.type.tensor_type.elem_type == _NARROW for value in (*graph.input, *graph.output))
    yield from (tensor.data_type == _NARROW for tensor in graph.initializer)
    for node in graph.node:
        yield node.op_type in _LAYERS
        yield from (entry.i == _NARROW for entry in node.attribute if entry.name in ("to", "dtype"))
        yield from (entry.t.data_type == _NARROW for entry in node.attribute if entry.HasField("t"))
        for inner in inner_graphs(node):
            yield from _mentions(inner)
