"""Freeing: the changes by which a graph with a batch of 1 takes any: what freed.py found, done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from statestream_server.models.form.edits import fresh, taken

_COUNT: Final = "statestream: how many sessions there are"
"""The name of the node that counts them."""


def free(model: onnx.ModelProto, name: str, axis: int) -> None:
    """Lets an axis of an input or output have any length."""
    model.graph.ClearField("value_info")
    for value in (*model.graph.input, *model.graph.output):
        if value.name == name and value.type.tensor_type.HasField("shape"):
            size = value.type.tensor_type.shape.dim[axis]
            size.Clear()
            size.dim_param = "batch"


def retarget(model: onnx.ModelProto, node: str, source: tuple[str, int], values: Sequence[int]) -> None:
    """Gives a Reshape a target with the sessions that there are.

    Args:
        model: What is changed.
        node: The node's first output.
        source: An input of the graph and its axis of sessions.
        values: The place of sessions in the target, how much else is there, and the target with -1 in that place.
    """
    at, more, *target = values
    used, graph, place = taken(model.graph), model.graph, _index(model.graph, node)
    if target.count(-1) == 1:
        graph.node[place].input[1] = _numbers(graph, used, target)
        return
    nodes, count = _counted(graph, used, source)
    if more > 1:
        many = fresh("sessions_times", used)
        nodes.append(helper.make_node("Mul", [count, _numbers(graph, used, [more])], [many]))
        count = many
    joined = fresh(f"{node}_target", used)
    nodes.append(_around(graph, used, target[:at], count, target[at + 1 :], joined))
    graph.node[place].input[1] = joined
    _insert(graph, place, nodes)


def spread(model: onnx.ModelProto, node: str, source: tuple[str, int], values: Sequence[int]) -> None:
    """Repeats a constant that a node takes for all sessions that there are.

    Args:
        model: What is changed.
        node: The node's first output.
        source: An input of the graph and its axis of sessions.
        values: Which input of the node it is, along which axis, and how many it has.
    """
    operand, axis, rank = values
    used, graph, place = taken(model.graph), model.graph, _index(model.graph, node)
    given = graph.node[place].input[operand]
    nodes, count = _counted(graph, used, source)
    shape, made = fresh(f"{given}_shape", used), fresh(f"{given}_spread", used)
    # Expand leaves an axis as it is where the other shape has 1: all but that of sessions.
    nodes.append(_around(graph, used, [1] * axis, count, [1] * (rank - axis - 1), shape))
    nodes.append(helper.make_node("Expand", [given, shape], [made]))
    graph.node[place].input[operand] = made
    _insert(graph, place, nodes)


def _index(graph: onnx.GraphProto, made: str) -> int:
    for place, node in enumerate(graph.node):
        if made in node.output:
            return place
    raise KeyError(f"no operator makes {made!r}")


def _numbers(graph: onnx.GraphProto, used: set[str], values: Sequence[int]) -> str:
    """A new constant of whole numbers."""
    name = fresh("sizes", used)
    graph.initializer.append(numpy_helper.from_array(np.asarray([int(each) for each in values], np.int64), name))
    return name


def _counted(graph: onnx.GraphProto, used: set[str], source: tuple[str, int]) -> tuple[list[onnx.NodeProto], str]:
    """How many sessions there are [1]: nodes to add, and what they make."""
    for node in graph.node:
        if node.name == _COUNT:
            return [], node.output[0]
    shape, count = fresh("shape_of_sessions", used), fresh("sessions", used)
    axis = _numbers(graph, used, [source[1]])
    return [
        helper.make_node("Shape", [source[0]], [shape]),
        helper.make_node("Gather", [shape, axis], [count], name=_COUNT),
    ], count


def _around(
    graph: onnx.GraphProto, used: set[str], before: Sequence[int], count: str, behind: Sequence[int], made: str
) -> onnx.NodeProto:
    """A shape of constants with a computed length among them."""
    parts = [_numbers(graph, used, before)] * bool(before) + [count] + [_numbers(graph, used, behind)] * bool(behind)
    return helper.make_node("Concat", parts, [made], axis=0)


def _insert(graph: onnx.GraphProto, place: int, nodes: Sequence[onnx.NodeProto]) -> None:
    """Puts nodes before another one; what counts sessions first of all, so that all others may ask."""
    counting = sum(node.name == _COUNT for node in nodes) * 2
    for node in reversed(nodes[counting:]):
        graph.node.insert(place, node)
    for node in reversed(nodes[:counting]):
        graph.node.insert(0, node)
