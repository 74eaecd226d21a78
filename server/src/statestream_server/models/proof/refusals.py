"""Refusals: why ONNX Runtime does not take a graph, in the words of whoever exported it, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import onnx

_NOISE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from \S+ failed:|/\S+\.(?:cc|h):\d+ .*\) (?=[A-Z])"
)
_IR = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")
_OPSET = re.compile(r"Opset (\d+) is under development .* domain (\S+) is till opset (\d+)")
_KNOWN = frozenset(["", "ai.onnx", "ai.onnx.ml", "com.microsoft"])


def told(proto: onnx.ModelProto, error: str) -> str:
    """What is said of a graph that ONNX Runtime refused with these words; one line."""
    if match := _IR.search(error):
        return (
            f"it is of ONNX's IR version {match[1]}, and this ONNX Runtime reads up to {match[2]}; export it with an"
            " older onnx, or serve it with a newer onnxruntime"
        )
    if match := _OPSET.search(error):
        return (
            f"it is of opset {match[1]} of {match[2]}, and this ONNX Runtime knows up to {match[3]}; export it with"
            f" opset_version={match[3]} or lower, or serve it with a newer onnxruntime"
        )
    own = {function.domain for function in proto.functions}
    foreign = sorted({f"{node.domain}:{node.op_type}" for node in _nodes(proto) if node.domain not in _KNOWN | own})
    refused = f"ONNX Runtime refuses it ({_NOISE.sub('', error)})"
    if foreign:
        return (
            f"{refused}: it has operators of others ({', '.join(foreign[:5])}), and libraries of operators are never"
            " loaded; export it with operators of ONNX alone"
        )
    return f"{refused}; export it again"


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from _inside(proto.graph.node)
    for function in proto.functions:
        yield from _inside(function.node)


def _inside(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _inside(attribute.g.node)
            for graph in attribute.graphs:
                yield from _inside(graph.node)
