"""Tokens: the changes by which the graphs of an encoder and a decoder take one source, one token, and keep one shape.

A source has any number of tokens, and a row of memory one shape: what the encoder gives is filled up behind the source,
and a mask tells the decoder how much of it counts. A decoder without memory reads all tokens so far: then those are it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from statestream_server.models.form.edits import called, fresh, made_as, named, read_as, taken

OLDEST: Final = 13
"""The oldest version of ONNX's operators that these changes can be written in."""


class _Nodes:
    """New nodes and constants of a graph, by names that are free."""

    def __init__(self, graph: onnx.GraphProto, stem: str) -> None:
        self._graph, self._stem, self._used = graph, stem, taken(graph)
        self.made = list[onnx.NodeProto]()

    def fresh(self, what: str) -> str:
        return fresh(f"{self._stem}_{what}", self._used)

    def constant(self, what: str, value: object, dtype: str = "int64") -> str:
        name = self.fresh(what)
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add(self, operator: str, inputs: Sequence[str], made: str = "", **attributes: Any) -> str:
        made = made or self.fresh(operator.lower())
        self.made.append(helper.make_node(operator, inputs, [made], **attributes))
        return made

    def padded(self, source: str, made: str, rank: int, axis: int, length: int, value: str = "") -> str:
        """A value with what is missing behind it along an axis; what is beyond is cut off."""
        size = self.add("Gather", [self.add("Shape", [source]), self.constant("axis", [axis])])
        missing = self.add("Sub", [self.constant("length", [length]), size])
        none, before, after = self.constant("none", [0]), rank + axis, rank - axis - 1
        bounds = self.add("Concat", [none] * before + [missing] + [none] * after, axis=0)
        return self.add("Pad", [source, bounds, *([value] if value else [])], made)

    def first(self) -> None:
        """Puts them before all others."""
        for node in reversed(self.made):
            self._graph.node.insert(0, node)

    def last(self) -> None:
        """Puts them behind all others."""
        self._graph.node.extend(self.made)


def _dtype(value: onnx.ValueInfoProto) -> str:
    return str(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name)


def _rank(value: onnx.ValueInfoProto) -> int:
    return len(value.type.tensor_type.shape.dim)


def _length(value: onnx.ValueInfoProto, axis: int, length: int | str) -> None:
    size = value.type.tensor_type.shape.dim[axis]
    size.Clear()
    if isinstance(length, int):
        size.dim_value = length
    else:
        size.dim_param = length


def lift(graph: onnx.GraphProto, name: str, axis: int) -> None:
    """An input has one axis less than what the graph reads: there it has the length 1."""
    nodes, value = _Nodes(graph, name), named(graph.input, name)
    read_as(graph.node, name, nodes.add("Unsqueeze", [name, nodes.constant("axes", [axis])]))
    nodes.first()
    del value.type.tensor_type.shape.dim[axis]


def drop(graph: onnx.GraphProto, name: str, axis: int) -> None:
    """An output has one axis less than what the graph gives: there it has the length 1."""
    nodes, value = _Nodes(graph, name), named(graph.output, name)
    whole = _set_aside(graph, name, nodes)
    nodes.add("Squeeze", [whole, nodes.constant("axes", [axis])], name)
    nodes.last()
    del value.type.tensor_type.shape.dim[axis]


def _set_aside(graph: onnx.GraphProto, name: str, nodes: _Nodes) -> str:
    """Gives what an output is another name, so that a value made of it can have the output's."""
    whole = nodes.fresh("whole")
    read_as(graph.node, name, whole)
    made_as(graph.node, name, whole)
    return whole


def prefix(graph: onnx.GraphProto, name: str, state: str, count: str, most: int) -> None:
    """An input that reads all tokens so far gets one at a time; a state has them, and another counts them."""
    nodes, value = _Nodes(graph, name), named(graph.input, name)
    places = nodes.constant("places", [[*range(most)]])
    step = nodes.add("Unsqueeze", [name, nodes.constant("axes", [1])])
    here = nodes.add("Equal", [places, count])
    read_as(graph.node, name, f"{state}_next")
    nodes.add("Where", [here, step, state], f"{state}_next")
    nodes.add("Add", [count, nodes.constant("one", 1)], f"{count}_next")
    nodes.first()
    _length(value, 1, most)
    for made, dtype, length in ((state, value.type.tensor_type.elem_type, most), (count, TensorProto.INT64, 1)):
        one = called(value, made)
        one.type.tensor_type.elem_type = dtype
        _length(one, 1, length)
        graph.input.append(one)
        graph.output.append(called(one, f"{made}_next"))
    del value.type.tensor_type.shape.dim[1]


def at(graph: onnx.GraphProto, name: str, count: str, most: int) -> None:
    """An output of all tokens so far is that of the newest."""
    nodes, value = _Nodes(graph, name), named(graph.output, name)
    whole = _set_aside(graph, name, nodes)
    newest = nodes.add("Min", [count, nodes.constant("last", most - 1)])
    nodes.add("GatherND", [whole, newest], name, batch_dims=1)
    nodes.last()
    del value.type.tensor_type.shape.dim[1]


def ones(graph: onnx.GraphProto, name: str, tokens: str, length: int) -> None:
    """A mask that callers would send is 1 for every token; of a length that is fixed 0 behind them."""
    nodes, value = _Nodes(graph, name), named(graph.input, name)
    _ones(nodes, tokens, name, value.type.tensor_type.elem_type, length)
    nodes.first()
    graph.input.remove(value)


def tell(graph: onnx.GraphProto, name: str, tokens: str, length: int, dtype: int) -> None:
    """A mask becomes an output: 1 for every token, 0 behind them up to a length."""
    nodes, value = _Nodes(graph, name), called(named(graph.input, tokens), name)
    _ones(nodes, tokens, name, dtype, length)
    nodes.first()
    value.type.tensor_type.elem_type = dtype
    _length(value, 1, length)
    graph.output.append(value)


def _ones(nodes: _Nodes, tokens: str, made: str, dtype: int, length: int) -> None:
    one = numpy_helper.from_array(np.ones(1, helper.tensor_dtype_to_np_dtype(dtype)))
    shape = nodes.add("Shape", [tokens])
    whole = nodes.add("ConstantOfShape", [shape], "" if length else made, value=one)
    if length:
        nodes.padded(whole, made, 2, 1, length)


def source(graph: onnx.GraphProto, name: str, length: int, pad: int) -> None:
    """An input that takes so many tokens takes fewer, and is filled up."""
    nodes, value = _Nodes(graph, name), named(graph.input, name)
    whole = nodes.fresh("filled")
    read_as(graph.node, name, whole)
    nodes.padded(name, whole, 2, 1, length, nodes.constant("pad", pad, _dtype(value)))
    nodes.first()
    _length(value, 1, "source")


def fill(graph: onnx.GraphProto, name: str, axis: int, length: int) -> None:
    """An output is filled with zeros along the axis of the source, up to a length."""
    nodes, value = _Nodes(graph, name), named(graph.output, name)
    nodes.padded(_set_aside(graph, name, nodes), name, _rank(value), axis, length)
    nodes.last()
    _length(value, axis, length)


def ban(graph: onnx.GraphProto, name: str, tokens: Sequence[int], symbols: int) -> None:
    """Tokens that never come have the lowest score."""
    nodes, value = _Nodes(graph, name), named(graph.output, name)
    banned = np.isin(np.arange(symbols), tokens)
    lowest = np.finfo(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).min
    whole = _set_aside(graph, name, nodes)
    inputs = [nodes.constant("banned", banned, "bool"), nodes.constant("lowest", lowest, _dtype(value)), whole]
    nodes.add("Where", inputs, name)
    nodes.last()


WAYS: Final[Mapping[str, Callable[[onnx.GraphProto, str, str, Sequence[float], str], None]]] = {
    "lift": lambda graph, name, made, values, count: lift(graph, name, int(values[0])),
    "drop": lambda graph, name, made, values, count: drop(graph, name, int(values[0])),
    "prefix": lambda graph, name, made, values, count: prefix(graph, name, made, count, int(values[0])),
    "at": lambda graph, name, made, values, count: at(graph, name, count, int(values[0])),
    "ones": lambda graph, name, made, values, count: ones(graph, name, made, int(values[0])),
    "tell": lambda graph, name, made, values, count: tell(graph, made, name, int(values[0]), int(values[1])),
    "source": lambda graph, name, made, values, count: source(graph, name, int(values[0]), int(values[1])),
    "fill": lambda graph, name, made, values, count: fill(graph, name, int(values[0]), int(values[1])),
    "ban": lambda graph, name, made, values, count: ban(graph, name, list(map(int, values[1:])), int(values[0])),
}
"""By the kind of a change: its name, what it makes, its numbers, its tally."""
SAID: Final[Mapping[str, Callable[[str, str, str], str]]] = {
    "lift": lambda name, made, numbers: f"input {name} takes one token of a session",
    "drop": lambda name, made, numbers: f"output {name} is of one token",
    "prefix": lambda name, made, numbers: (
        f"the tokens so far, {numbers} at most, are kept, and {name} takes the newest"
    ),
    "at": lambda name, made, numbers: f"output {name} is that of the newest token",
    "ones": lambda name, made, numbers: f"input {name} is 1 for every token",
    "tell": lambda name, made, numbers: f"output {made} is 1 for every token of the source, 0 behind it",
    "source": lambda name, made, numbers: f"input {name} takes fewer tokens, too, and is filled up",
    "fill": lambda name, made, numbers: f"output {name} is filled with zeros behind the source",
    "ban": lambda name, made, numbers: (
        f"{name} has the lowest score for {numbers.partition(', ')[2]}, which never come"
    ),
}
