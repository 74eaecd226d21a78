"""Small graphs that read, write and copy rows of a slab where it lies. ONNX out; nothing is run here.

A slab is its columns as items, [capacity × parts, *item] each (see `fused_names.SlabNames`), so rows come as the
numbers of their items: one list for every number of parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper

from statestream_server.models.graphs.fused_names import SlabNames
from statestream_server.models.graphs.operators import info

_OPSET, _IR = 17, 8


class Item(NamedTuple):
    """How one column lies in a slab.

    Attributes:
        parts: How many items are one row.
        shape: The shape of one.
        dtype: Its type.
    """

    parts: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @classmethod
    def of(cls, slab: SlabNames, dtype: np.dtype[np.generic]) -> Item:
        """As the wrapped graph has it."""
        return cls(slab.parts, slab.item, dtype)


def before(column: int) -> str:
    """Input: a column of the slab."""
    return f"slab{column}"


def after(column: int) -> str:
    """Output: the same after the run; bind it to the memory of `before`."""
    return f"slab{column}_out"


def origin(column: int) -> str:
    """Input: the column of the slab that `copying` takes rows from; it may be the same one."""
    return f"origin{column}"


def values(column: int) -> str:
    """Rows of a column as items: output of `reading`, input of `writing`."""
    return f"values{column}"


def source(parts: int) -> str:
    """Input: items to read, int64 [k]."""
    return f"source{parts}"


def target(parts: int) -> str:
    """Input: items to write, int64 [k, 1]."""
    return f"target{parts}"


def reading(items: Sequence[Item]) -> onnx.ModelProto:
    """A graph that gives items `source` of every column as `values`."""
    graph = _Graph()
    for i, item in enumerate(items):
        slab, rows = graph.take(before(i), item, "items"), graph.numbers(source(item.parts), item.parts)
        graph.give("Gather", [slab, rows], values(i), item, f"k{item.parts}")
    return graph.model()


def writing(items: Sequence[Item]) -> onnx.ModelProto:
    """A graph that sets items `target` of every column to `values`."""
    graph = _Graph()
    for i, item in enumerate(items):
        slab, rows = graph.take(before(i), item, "items"), graph.numbers(target(item.parts), item.parts, 1)
        value = graph.take(values(i), item, f"k{item.parts}")
        graph.give("ScatterND", [slab, rows, value], after(i), item, "items")
    return graph.model()


def copying(items: Sequence[Item]) -> onnx.ModelProto:
    """A graph that sets items `target` of every column to items `source` of `origin`, read before any is written."""
    graph = _Graph()
    for i, item in enumerate(items):
        slab, other = graph.take(before(i), item, "items"), graph.take(origin(i), item, "origins")
        value = f"moved{i}"
        graph.nodes.append(helper.make_node("Gather", [other, graph.numbers(source(item.parts), item.parts)], [value]))
        rows = graph.numbers(target(item.parts), item.parts, 1)
        graph.give("ScatterND", [slab, rows, value], after(i), item, "items")
    return graph.model()


class _Graph:
    """Collects what a graph is made of."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._inputs: dict[str, onnx.ValueInfoProto] = {}
        self._outputs: list[onnx.ValueInfoProto] = []

    def take(self, name: str, item: Item, length: str) -> str:
        self._inputs[name] = info(name, item.dtype, [length, *item.shape])
        return name

    def numbers(self, name: str, parts: int, *more: int) -> str:
        self._inputs[name] = info(name, np.dtype(np.int64), [f"k{parts}", *more])
        return name

    def give(self, op: str, inputs: Sequence[str], name: str, item: Item, length: str) -> None:
        self.nodes.append(helper.make_node(op, list(inputs), [name]))
        self._outputs.append(info(name, item.dtype, [length, *item.shape]))

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "rows", list(self._inputs.values()), self._outputs)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
