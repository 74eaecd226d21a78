"""ModelService: what is served; loading and unloading versions."""

from __future__ import annotations

from typing import Final

from statestream.v1 import model_pb2 as pb
from statestream.v1 import model_pb2_grpc as grpc_stubs
from statestream_server import caller
from statestream_server.catalog import Served
from statestream_server.edges.grpc.failures import Context
from statestream_server.models.model import Kind
from statestream_server.registry import Registry
from statestream_server.server import Server

_KINDS: Final = {
    Kind.PREDICT: pb.MODEL_KIND_PREDICT,
    Kind.SESSION: pb.MODEL_KIND_SESSION,
    Kind.GENERATE: pb.MODEL_KIND_GENERATE,
}


def _order(model: pb.Model) -> tuple[str, int]:
    return model.name, model.version


class ModelServicer(grpc_stubs.ModelServiceServicer):
    """Lists, describes, loads and unloads models."""

    def __init__(self, server: Server) -> None:
        """Calls go to the server's registry."""
        self._registry: Registry = server.registry
        self._selection = server.selection
        self._aliasing = server.aliasing

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """Lists loaded versions, and those that failed."""
        models = [self._message(served) for served in self._registry]
        failed = [
            pb.Model(name=name, version=version, error=reason)
            for (name, version), reason in self._registry.failures.items()
        ]
        models = sorted(models + failed, key=_order)
        return pb.ListModelsResponse(models=models)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """Describes a model."""
        return pb.GetModelResponse(
            model=self._message(self._registry.get(request.name, request.version, request.alias))
        )

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        """Loads a version."""
        served = await self._selection.load(request.name, request.version, request.alias)
        return pb.LoadModelResponse(model=self._message(served))

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        """Unloads a version, after the loads of it that were asked for before."""
        await self._selection.unload(request.name, request.version, request.alias)
        return pb.UnloadModelResponse()

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.SetAliasResponse:
        """Has an alias name a version, or takes it away."""
        return pb.SetAliasResponse(aliases=await self._aliasing.set(request.name, request.alias, request.version))

    def _message(self, served: Served) -> pb.Model:
        model = served.model
        return pb.Model(
            name=model.name,
            version=model.version,
            is_default=self._registry.is_default(model),
            kind=_KINDS[model.kind],
            digest=model.digest,
            signature=model.signature,
            encoder_signature=model.encoder_signature,
            batch_invariance=model.batch_invariance,
            encoder_batch_invariance=model.encoder_invariance,
            aliases=self._registry.aliases_of(model.name, model.version),
            resident_sessions=served.table.sessions_of(caller.current.get().counts) if served.table else 0,
        )
