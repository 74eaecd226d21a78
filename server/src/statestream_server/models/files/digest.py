"""The digest of a model file: by what it computes and what it says of itself; labels and comments do not count."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from statestream.contract.signature import Signature
from statestream_server.models.files import files

if TYPE_CHECKING:
    import onnx


def of(proto: onnx.ModelProto, weights: Iterable[Path], told: str, signature: Signature) -> str:
    """SHA-256 in hex over graph, weights and signature; labels, comments and the producer do not count.

    Args:
        proto: The graph, without weights that lie in files of their own.
        weights: Those files.
        told: The text of a model.toml that is not in the signature.
        signature: What the file says of itself.

    Raises:
        ModelLoadError: A file with weights cannot be read.
    """
    total = hashlib.sha256()
    bare = type(proto)()
    bare.CopyFrom(proto)
    for field in ("metadata_props", "doc_string", "producer_name", "producer_version", "model_version", "domain"):
        bare.ClearField(field)
    _strip(bare.graph)
    for function in bare.functions:
        function.ClearField("doc_string")
        function.ClearField("metadata_props")
        function.ClearField("value_info")
        _strip_nodes(function.node)
    total.update(bare.SerializeToString(deterministic=True))
    for path in weights:
        for block in files.blocks(path):
            total.update(block)
    total.update(told.encode())
    total.update(_unlabelled(signature).SerializeToString(deterministic=True))
    return total.hexdigest()


def _unlabelled(signature: Signature) -> Signature:
    bare = Signature()
    bare.CopyFrom(signature)
    bare.ClearField("description")
    bare.ClearField("quantization")
    for state in bare.states:
        state.ClearField("ranges")
    for spec in (*bare.inputs, *bare.outputs):
        spec.ClearField("ranges")
        spec.ClearField("columns")
        spec.ClearField("classes")
    return bare


def _strip(graph: onnx.GraphProto) -> None:
    for field in ("doc_string", "metadata_props", "value_info", "name"):
        graph.ClearField(field)
    for value in (*graph.input, *graph.output):
        value.ClearField("doc_string")
        value.ClearField("metadata_props")
    for tensor in graph.initializer:
        tensor.ClearField("doc_string")
        tensor.ClearField("metadata_props")
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        for field in ("doc_string", "metadata_props", "name"):
            node.ClearField(field)
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                _strip(graph)
