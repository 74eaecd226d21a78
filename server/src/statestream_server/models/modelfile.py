"""One ONNX file as it lies on the disk: its graph, its signature, its digest. Nothing is run here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import uses_external_data

from statestream import signature as signatures
from statestream.signature import Signature, TensorSpec
from statestream_server.models.fusion import FusionError
from statestream_server.models.model import ModelLoadError

_MEMORY_NAME = re.compile(
    r"(^|[^a-z])(h|c|hx|cx|hn|cn|h0|c0|h_?t|c_?t|states?|hidden|cell|memory|cache|past\w*)($|[^a-z])"
)
_BLOCK = 1 << 20
_MOST_BYTES = (1 << 31) - (1 << 20)
"""Protocol Buffers' limit of 2 GiB, less the wrapping."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file that was read.

    Attributes:
        path: The file.
        proto: Its contents; weights that lie in files of their own are not in it.
        signature: What the file says of itself, or what its inputs and outputs say.
        described: Whether the file has a signature of its own.
    """

    path: Path
    proto: onnx.ModelProto
    signature: Signature
    described: bool

    @property
    def external(self) -> bool:
        """Whether weights lie in files of their own."""
        return any(uses_external_data(tensor) for tensor in self.proto.graph.initializer)

    @property
    def hides_nan(self) -> bool:
        """Whether its operators turn NaN into numbers and it does not look for NaN itself."""
        ops = set(_ops(self.proto.graph.node))
        for function in self.proto.functions:
            ops |= set(_ops(function.node))
        return bool(ops & {"LSTM", "GRU", "RNN", "QuantizeLinear"}) and not ops & {"IsNaN", "IsInf"}

    def whole(self) -> onnx.ModelProto:
        """The graph with all its weights in it.

        Raises:
            FusionError: They are too large for one message.
        """
        if not self.external:
            return self.proto
        whole = onnx.load_model(self.path)
        if whole.ByteSize() > _MOST_BYTES:
            raise FusionError(f"its weights are {whole.ByteSize()} bytes; one message holds {_MOST_BYTES}")
        return whole

    def digest(self) -> str:
        """SHA-256 in hex over graph, weights and signature; labels, comments and the producer do not count."""
        total = hashlib.sha256()
        bare = onnx.ModelProto()
        bare.CopyFrom(self.proto)
        for field in ("metadata_props", "doc_string", "producer_name", "producer_version", "model_version", "domain"):
            bare.ClearField(field)
        _strip(bare.graph)
        for function in bare.functions:
            function.ClearField("doc_string")
            function.ClearField("metadata_props")
            function.ClearField("value_info")
            _strip_nodes(function.node)
        total.update(bare.SerializeToString(deterministic=True))
        for location in sorted({_location(t) for t in self.proto.graph.initializer if uses_external_data(t)}):
            with (self.path.parent / location).open("rb") as weights:
                while block := weights.read(_BLOCK):
                    total.update(block)
        total.update(_unlabelled(self.signature).SerializeToString(deterministic=True))
        return total.hexdigest()


def read(path: Path) -> ModelFile:
    """Reads an ONNX file.

    Raises:
        ModelLoadError: It cannot be read, is not ONNX, its signature is wrong, or it has memory and no signature.
    """
    try:
        proto = onnx.load_model(path, load_external_data=False)
    except (OSError, DecodeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelLoadError(f"{path}: not a readable ONNX file ({reason}); export it again") from error
    if not proto.graph.node and not proto.graph.output:
        raise ModelLoadError(f"{path}: not an ONNX file, or one without a graph; export it again")
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    try:
        if signatures.METADATA_KEY in metadata:
            return ModelFile(path, proto, signatures.loads(metadata[signatures.METADATA_KEY]), described=True)
        signature = _derived(path, proto.graph)
        signatures.check(signature)
    except signatures.SignatureError as error:
        raise ModelLoadError(f"{path}: {error}; export it again with statestream_export.export") from error
    return ModelFile(path, proto, signature, described=False)


def _derived(path: Path, graph: onnx.GraphProto) -> Signature:
    """The signature of a file without one: its inputs and outputs, if it clearly has no memory."""
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [_spec(path, value) for value in graph.input if value.name not in weights]
    outputs = [_spec(path, value) for value in graph.output]
    for spec in inputs:
        if _MEMORY_NAME.search(spec.name.lower()) and any(_alike(spec, output) for output in outputs):
            raise ModelLoadError(
                f"{path}: input {spec.name!r} looks like memory (an output has its type and rank), and the file has no"
                f" {signatures.METADATA_KEY}; export the model with statestream_export.export, which names its states"
            )
    return Signature(format=signatures.FORMAT, inputs=inputs, outputs=outputs)


def _spec(path: Path, value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise ModelLoadError(f"{path}: {value.name!r} is no tensor but a {value.type.WhichOneof('value')}; "
                             "only tensors are served, export the model without it")  # fmt: skip
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    except KeyError:
        dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    shape = [size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim]
    spec = TensorSpec(name=value.name, dtype=dtype, shape=shape)
    if shape and shape[0] < 0:
        spec.batch_axis = 0
    return spec


def _alike(one: TensorSpec, other: TensorSpec) -> bool:
    return one.dtype == other.dtype and len(one.shape) == len(other.shape)


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


def _ops(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield node.op_type
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _ops(graph.node)


def _location(tensor: onnx.TensorProto) -> str:
    return next(entry.value for entry in tensor.external_data if entry.key == "location")
