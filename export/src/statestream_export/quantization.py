"""Quantisation: a float graph becomes one whose large matrix products and convolutions run on whole numbers.

Every scale is fixed when the file is written: a row's result depends on that row alone, as the server proves when it
loads the file. Scales that are measured while it runs (ONNX Runtime's "dynamic" quantisation) are those of a whole
batch, and a session would get other outputs beside other sessions.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from statestream_export import int8_lstm
from statestream_export.errors import ExportError
from statestream_export.interface import Interface
from statestream_export.loss import Loss, episodes, measure, play
from statestream_export.running import Graph

Array = np.ndarray
Feeds = Mapping[str, Array]

SMALLEST = 4096
"""Gemm and MatMul with fewer weights stay float: they cost little time, and often are what says the answer."""
_WEIGHTED = ("Conv", "Gemm", "MatMul")
_CARRYING = (
    "Add",
    "AveragePool",
    "Concat",
    "Flatten",
    "GlobalAveragePool",
    "MaxPool",
    "Relu",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
"""Operators that can hand whole numbers on, where all they get are whole numbers."""
_FLOAT_OUT = ("Gemm", "MatMul")
"""Their results stay float: 8 bits are enough to calculate with, and coarse as an answer."""


def apply(model: onnx.ModelProto, known: Interface, judged: Interface) -> tuple[onnx.ModelProto, Loss]:
    """Quantises a graph by the examples of one interface and measures the loss over those of another.

    Raises:
        ExportError: There is nothing in it to quantise. `GateError`: what came out does not run.
    """
    with Graph(model, known) as before:
        feeds = [
            dict(zip(before.taken, given, strict=True))
            for runs, states in episodes(known)
            for given, _ in play(before, known, runs, states)
        ]
        small, layers, kept = quantise(model, feeds)
        with Graph(small, judged) as after:
            outputs, states = measure(before, after, judged)
    return small, Loss(layers, kept, model.ByteSize(), small.ByteSize(), outputs, states)


def quantise(model: onnx.ModelProto, feeds: Sequence[Feeds]) -> tuple[onnx.ModelProto, dict[str, int], dict[str, int]]:
    """Quantises LSTM, Conv, and Gemm and MatMul with 4,096 weights or more; the model itself stays as it is.

    Args:
        model: A graph whose weights are in it.
        feeds: What it is calibrated with: for every input an array.

    Returns:
        The quantised graph, how many of each operator were quantised, and how many with weights were not.

    Raises:
        ExportError: There is nothing in it to quantise.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    before = Counter(_weighted(made.graph))
    recurrent = int8_lstm.rewrite(made.graph)
    chosen = _chosen(made.graph)
    layers = Counter(node.op_type for node in chosen if node.op_type in _WEIGHTED and "/int8/" not in node.name)
    if recurrent:
        layers["LSTM"] = recurrent
    if not layers:
        found = ", ".join(f"{name}×{number}" for name, number in sorted(before.items())) or "no layers with weights"
        raise ExportError(
            f"quantize='int8' has nothing to quantise: the graph has {found}. Covered are LSTM, Conv, and Gemm and"
            f" MatMul with {SMALLEST:,} weights or more; GRU and RNN are not, nor are float64 and float16. Leave"
            " quantize out, or use nn.LSTM"
        )
    if chosen:
        made = _static(made, [node.name for node in chosen], feeds)
    del made.graph.value_info[:]
    return made, dict(layers), dict(before - layers)


def _weighted(graph: onnx.GraphProto) -> Iterator[str]:
    """The operators that have weights, one entry for each of their nodes."""
    known = int8_lstm.constants(graph)
    for node in graph.node:
        if node.op_type in ("LSTM", "GRU", "RNN") or (
            node.op_type in (*_WEIGHTED, "ConvTranspose") and _weights(node, known)
        ):
            yield node.op_type


def _weights(node: onnx.NodeProto, known: Mapping[str, Array]) -> int:
    """How many constant float32 weights a node multiplies with; 0 where it has none."""
    value = known.get(node.input[1]) if len(node.input) > 1 else None
    return value.size if value is not None and value.dtype == np.float32 and value.ndim > 1 else 0


def _chosen(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes to calibrate: those with weights that are large enough, and what lies between them."""
    known, chosen, whole = int8_lstm.constants(graph), list[onnx.NodeProto](), set[str]()
    for number, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
        weights = _weights(node, known) if node.op_type in _WEIGHTED else 0
        large = weights > 0 and (node.op_type == "Conv" or weights >= SMALLEST)
        values = [name for name in node.input if name and name not in known]
        carries = node.op_type in _CARRYING and bool(values) and whole.issuperset(values)
        if carries and node.op_type in ("Add", "Concat") and len(values) < 2:
            carries = False  # A bias of its own: nothing that is quantised meets anything.
        if large or carries:
            chosen.append(node)
            whole.update(node.output)
    return chosen


class _Reader:
    """Feeds, one after the other, as ONNX Runtime's calibration asks for them."""

    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self._feeds, None)


def _static(model: onnx.ModelProto, names: list[str], feeds: Sequence[Feeds]) -> onnx.ModelProto:
    """ONNX Runtime's static quantisation of the nodes named, in standard operators (QuantizeLinear and its inverse)."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = Path(folder, "model.onnx")
            quantize_static(
                model,
                path,
                _Reader(feeds),
                quant_format=QuantFormat.QDQ,
                nodes_to_quantize=names,
                per_channel=True,
                # As in int8_lstm: what was measured here holds on processors that add up in 16 bits.
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"OpTypesToExcludeOutputQuantization": list(_FLOAT_OUT)},
            )
            return onnx.load_model(path)
    except Exception as error:
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ExportError(f"ONNX Runtime cannot quantise the graph; nothing was written: {line}") from error
    finally:
        logging.disable(level)
