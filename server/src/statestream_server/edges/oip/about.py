"""About: server, models and repository in the protocol's words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import statestream_server
from statestream.contract.signature import StateSpec, TensorSpec
from statestream.contract.specs import batch_axis_of
from statestream_server.edges.oip import datatypes
from statestream_server.edges.oip import oip_pb2 as pb
from statestream_server.edges.oip.inference import Asked
from statestream_server.models.model import Kind, Model
from statestream_server.registry import Registry

NAME: Final = "statestream"
EXTENSIONS: Final = (
    "sequence",
    "sequence(string_id)",
    "sequence(position)",
    "classification",
    "binary_tensor_data",
    "model_repository",
    "model_configuration",
    "statistics",
)
PLATFORM: Final = "onnxruntime_onnx"
_BACKEND: Final = "onnxruntime"
_MOST_ROWS: Final = 2**31 - 1


def server() -> pb.ServerMetadataResponse:
    """What this server is."""
    return pb.ServerMetadataResponse(name=NAME, version=statestream_server.__version__, extensions=EXTENSIONS)


def metadata(model: Model, versions: Iterable[int]) -> pb.ModelMetadataResponse:
    """Inputs and outputs of a model, of which these versions serve."""
    return pb.ModelMetadataResponse(
        name=model.name,
        versions=[str(version) for version in versions],
        platform=PLATFORM,
        inputs=_tensors(model.signature.inputs),
        outputs=_tensors(model.signature.outputs),
    )


def _tensors(specs: Sequence[TensorSpec]) -> list[pb.ModelMetadataResponse.TensorMetadata]:
    return [
        pb.ModelMetadataResponse.TensorMetadata(
            name=spec.name, datatype=datatypes.datatype_of(spec.dtype), shape=spec.shape
        )
        for spec in specs
    ]


def config(model: Model) -> pb.ModelConfig:
    """How a model is served."""
    signature = model.signature
    specs = [*signature.inputs, *signature.outputs]
    batched = all(batch_axis_of(spec) == 0 for spec in specs)
    made = pb.ModelConfig(name=model.name, platform=PLATFORM, backend=_BACKEND)
    # Of a sequence a request has a batch of 1, and of any other model as many rows as a message holds.
    made.max_batch_size = (1 if model.kind == Kind.SESSION else _MOST_ROWS) if batched else 0
    for spec in signature.inputs:
        made.input.add(name=spec.name, data_type=_type(spec.dtype), dims=_dims(spec, batched=batched))
    for spec in signature.outputs:
        made.output.add(name=spec.name, data_type=_type(spec.dtype), dims=_dims(spec, batched=batched))
    if model.kind == Kind.SESSION:
        made.sequence_batching.oldest.SetInParent()
        for state in signature.states:
            made.sequence_batching.state.add(
                input_name=state.input,
                output_name=state.output,
                data_type=_type(state.dtype),
                dims=_dims(state, batched=True),
            )
    else:
        made.dynamic_batching.SetInParent()
    return made


def _type(dtype: str) -> str:
    return datatypes.config_type(datatypes.datatype_of(dtype))


def _dims(spec: TensorSpec | StateSpec, *, batched: bool) -> list[int]:
    return [size for axis, size in enumerate(spec.shape) if not (batched and axis == batch_axis_of(spec))]


def index(registry: Registry, *, ready: bool) -> pb.RepositoryIndexResponse:
    """The versions that serve, and unless only those are asked for the ones that failed."""
    models = [(served.model.name, served.model.version, "READY", "") for served in registry]
    if not ready:
        models += [(name, version, "UNAVAILABLE", why) for (name, version), why in registry.failures.items()]
        known = {(name, version) for name, version, _, _ in models}
        models += [
            (name, version, "UNAVAILABLE", "not loaded")
            for name, version in registry.newest()
            if (name, version) not in known
        ]
    response = pb.RepositoryIndexResponse()
    for name, version, state, reason in sorted(models):
        response.models.add(name=name, version=str(version), state=state, reason=reason)
    return response


def statistics(asked: Mapping[tuple[str, int], Asked], models: Iterable[tuple[str, int]]) -> pb.ModelStatisticsResponse:
    """What was asked of versions over this protocol."""
    response = pb.ModelStatisticsResponse()
    for name, version in models:
        found = asked.get((name, version), Asked())
        told = response.model_stats.add(
            name=name, version=str(version), last_inference=int(found.last * 1e3), inference_count=found.runs
        )
        told.inference_stats.success.count, told.inference_stats.success.ns = found.good, int(found.good_seconds * 1e9)
        told.inference_stats.fail.count, told.inference_stats.fail.ns = found.bad, int(found.bad_seconds * 1e9)
    return response
