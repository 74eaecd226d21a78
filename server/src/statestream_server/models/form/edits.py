"""Edits: what every change of a graph needs: its names, new ones, and values that are read under another name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from onnx import inliner

from statestream_server.models.graphs.operators import inner_graphs


def taken(graph: onnx.GraphProto) -> set[str]:
    """All names of values in a graph and those inside it."""
    return set(_names(graph))


def fresh(name: str, used: set[str]) -> str:
    """A name that is not used yet; it is from now on."""
    found, count = name, 2
    while found in used:
        found, count = f"{name}_{count}", count + 1
    used.add(found)
    return found


def inlined(model: onnx.ModelProto) -> None:
    """Lays open the functions of a model."""
    if model.functions:
        model.CopyFrom(inliner.inline_local_functions(model))


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model uses; 0 where it uses none."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def named(values: Iterable[onnx.ValueInfoProto], name: str) -> onnx.ValueInfoProto:
    """The input or output of a name.

    Raises:
        KeyError: There is none.
    """
    for value in values:
        if value.name == name:
            return value
    raise KeyError(f"there is no input or output {name!r}")


def called(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    """A copy with another name."""
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    copy.name = name
    return copy


def read_as(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    """Lets all that read a value read another one, in inner graphs too."""
    for node in nodes:
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new
        for graph in inner_graphs(node):
            read_as(graph.node, old, new)
            for value in graph.output:
                if value.name == old:
                    value.name = new


def made_as(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    """Lets the node that makes a value make it under another name."""
    for node in nodes:
        for place, name in enumerate(node.output):
            if name == old:
                node.output[place] = new


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.output))
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        yield from (*node.input, *node.output)
        for inner in inner_graphs(node):
            yield from _names(inner)
