"""Operators: what a node of an ONNX graph reads, whether it may refuse values; how inputs and outputs are declared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper

_TOTAL: Final = frozenset(
    "Abs Add And BatchNormalization Cast Ceil Clip Concat Constant Conv Cos Dropout Elu Equal Erf Exp Flatten Floor"
    " Gelu Gemm Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LayerNormalization LeakyRelu Less"
    " LessOrEqual Log LogSoftmax MatMul Max Mean Min Mish Mul Neg Not Or PRelu Pow Reciprocal ReduceMax ReduceMean"
    " ReduceMin ReduceSum Relu Round Selu Shape Sigmoid Sign Sin Softmax Softplus Softsign Sqrt Squeeze Sub Sum Tanh"
    " Transpose Unsqueeze Where Xor".split()
)


def info(name: str, dtype: np.dtype[Any], shape: Sequence[Any]) -> onnx.ValueInfoProto:
    """The declaration of an input or output; an axis of any length has a name."""
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)


def may_refuse(node: onnx.NodeProto) -> bool:
    """Whether a run may fail at a node because of values: a token beyond a table, a whole number over zero.

    Of operators that are not known to take any values it is assumed.
    """
    return node.op_type not in _TOTAL or node.domain not in ("", "ai.onnx")


def inner_graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs that a node holds: the bodies of loops, the branches of conditions."""
    return [
        graph
        for attribute in node.attribute
        for graph in ((attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs)
    ]


def uses(node: onnx.NodeProto) -> Iterator[str]:
    """The names that a node reads, its inner graphs included."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for part in inner.node:
                yield from uses(part)
            yield from (value.name for value in inner.output)


def rounds_coarsely(model: onnx.ModelProto) -> bool:
    """Whether something in a graph is rounded to 8 bits, or computed in half precision."""
    halves = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)

    def coarse(graph: onnx.GraphProto) -> bool:
        return (
            any(value.type.tensor_type.elem_type in halves for value in (*graph.input, *graph.output))
            or any(tensor.data_type in halves for tensor in graph.initializer)
            or any(_coarse(node, halves) or any(map(coarse, inner_graphs(node))) for node in graph.node)
        )

    return coarse(model.graph) or any(_coarse(node, halves) for function in model.functions for node in function.node)


def _coarse(node: onnx.NodeProto, halves: tuple[int, ...]) -> bool:
    kind = node.op_type
    return (
        "Quantize" in kind
        or kind.endswith("Integer")
        or kind.startswith("QLinear")
        or (kind == "Cast" and any(entry.name == "to" and entry.i in halves for entry in node.attribute))
    )
