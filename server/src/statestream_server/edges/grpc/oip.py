"""GRPCInferenceService: the Open Inference Protocol over gRPC; messages in, messages out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from statestream.contract import errors
from statestream_server import caller
from statestream_server.caller import Caller
from statestream_server.catalog import Served
from statestream_server.edges.grpc.caps import MAX_TENSORS, Caps
from statestream_server.edges.grpc.chain import Chain, Direct, Handler
from statestream_server.edges.grpc.decoding import Undecoded, Unreadable
from statestream_server.edges.grpc.failures import Context
from statestream_server.edges.grpc.oip_stream import Came, OipStream, refusal, serialized
from statestream_server.edges.grpc.readers import Readers
from statestream_server.edges.grpc.waiting import Waiting
from statestream_server.edges.oip import about, parameters, tensors
from statestream_server.edges.oip import oip_pb2 as pb
from statestream_server.edges.oip.answers import Encoded, streamed
from statestream_server.edges.oip.inference import Request, Response, inference_of
from statestream_server.edges.oip.sequences import Asker, Sequences
from statestream_server.server import Readiness, Server
from statestream_server.sessions.admission.accounts import COPIES, OVERHEAD

SERVICE: Final = "inference.GRPCInferenceService"
"""What the service is called on the wire."""
_MOST_CLASSES: Final = 1 << 16
_METHODS: Final = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods


class OipServicer:
    """Answers clients of the Open Inference Protocol."""

    def __init__(self, server: Server, readiness: Readiness, caps: Caps, readers: Readers) -> None:
        """Calls go to the server's rooms; `readiness` says whether it serves.

        `caps` is what a request of a stream may have, `readers` watches the writes of streams.
        """
        self._server = server
        self._registry, self._selection = server.registry, server.selection
        self._readiness, self._caps, self._readers = readiness, caps, readers
        self._inference = inference_of(server)
        self._sequences = Sequences(server, self._inference)

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """The process lives: it answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """Whether callers may be sent here."""
        return pb.ServerReadyResponse(ready=not self._readiness.reason)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """Whether a version serves; one that does not exist does not."""
        try:
            self._served(request.name, request.version)
        except errors.ModelNotFound:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        """What this server is."""
        return about.server()

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        """Inputs and outputs of a model."""
        model = self._served(request.name, request.version).model
        versions = [each.model.version for each in self._registry if each.model.name == model.name]
        return about.metadata(model, versions)

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        """How a model is served."""
        return pb.ModelConfigResponse(config=about.config(self._served(request.name, request.version).model))

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        """What was asked of a model, or of all."""
        version = 0
        if request.name:
            named = parameters.version_of(request.version)
            served = self._registry.get(request.name, *named)
            version = served.model.version if any(named) else 0
        models = [
            (each.model.name, each.model.version)
            for each in self._registry
            if request.name in ("", each.model.name) and version in (0, each.model.version)
        ]
        return about.statistics(self._inference.asked, models)

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        """The models that lie there."""
        _check_repository(request.repository_name)
        return about.index(self._registry, ready=request.ready)

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """Serves the newest version that lies there."""
        _check_repository(request.repository_name)
        if request.parameters:
            raise errors.Unimplemented(
                f"the load of {errors.quoted(request.model_name)} brings parameters"
                f" ({errors.shortened(', '.join(sorted(request.parameters)))}); this server loads what lies in its"
                " models folder: put files there and load without parameters"
            )
        await self._selection.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Takes a model out of service."""
        _check_repository(request.repository_name)
        await self._selection.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse | Encoded:
        """Runs a model, or the next steps of a sequence."""
        return await self._infer(request)

    def take(self, request: Any, caller: Caller, call: Direct) -> bool:
        """Takes the usual ModelInfer; see `chain.Take`."""
        if not isinstance(request, Undecoded):
            return self._sequences.take(request, caller.tenant, _Asker(call))
        seen = self._sequences.seen(request.data, caller.tenant)
        if seen is not None and self._sequences.take_seen(seen, _Asker(call)):
            request.model_name = seen[0].key.model
            return True
        message = request.message()
        if not self._sequences.take(message, caller.tenant, _Asker(call), data=request.data):
            return False
        request.model_name = getattr(message, "model_name", "")
        return True

    async def ModelStreamInfer(self, _unused: object, context: Context) -> None:
        """The same for the requests of a stream, those of one sequence in their order, others beside each other.

        An error is told in the stream, which goes on. It is read on as long as what is under way is not too much.
        """
        with self._readers.follow() as reading:
            await OipStream(self._server, context, reading, self._sequences, self._streamed, self._size).serve()

    def _size(self, request: Came) -> int:
        """About how many bytes a request is to the server, with what it is answered."""
        if isinstance(request, Unreadable):
            return OVERHEAD
        shapes = {tensor.name: tensor.shape for tensor in request.inputs[:MAX_TENSORS]}
        answer = self._inference.answer_bytes(request.model_name, request.model_version, shapes)
        return OVERHEAD + COPIES * request.ByteSize() + answer

    async def _streamed(self, request: Came) -> pb.ModelStreamInferResponse | Encoded:
        """The answer to a request of a stream; an error is one, too."""
        try:
            if isinstance(request, Unreadable):
                raise request.error
            self._caps.check(request)
            answer = await self._infer(request)
            if isinstance(answer, Encoded):
                return Encoded(streamed(answer.SerializeToString()))
            return pb.ModelStreamInferResponse(infer_response=answer)
        except Exception as error:
            return refusal(error, "" if isinstance(request, Unreadable) else request.id)

    async def _infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse | Encoded:
        waiting = Waiting[Encoded]()
        if self._sequences.take(request, caller.current.get().tenant, _Asker(waiting)):
            return await waiting.message
        response = await self._inference.infer(
            Request(
                request.model_name,
                parameters.version_of(request.model_version),
                request.id,
                tensors.inputs_of(request),
                _outputs(request),
                parameters.values_of(request.parameters),
            )
        )
        return _message(request, response)

    def _served(self, name: str, version: str) -> Served:
        return self._registry.get(name, *parameters.version_of(version))


class _Asker(Asker):
    """A request that a call brought."""

    __slots__ = ("_call",)

    def __init__(self, call: Direct) -> None:
        self._call = call

    def answered(self, answer: bytes) -> None:
        self._call.answer(Encoded(answer))

    def failed(self, error: errors.StatestreamError) -> None:
        self._call.fail(error)


def _outputs(request: pb.ModelInferRequest) -> dict[str, int]:
    """The outputs that a request wants, with how many classes of each.

    Raises:
        BadTensor: One comes twice, or has a parameter that is wrong.
    """
    found = dict[str, int]()
    for output in request.outputs:
        values = parameters.values_of(output.parameters)
        if any(key.startswith("shared_memory") for key in values):
            raise errors.Unimplemented(
                f"output {errors.quoted(output.name)} is wanted in shared memory; this server writes none: leave that"
                " parameter out"
            )
        found[output.name] = _classes(output.name, values.get("classification", 0))
    if len(found) < len(request.outputs):
        raise errors.BadTensor(
            f"outputs has {len(request.outputs)} names, {len(found)} of them different; expected each once at most",
            metadata={"field": "outputs"},
        )
    return found


def _classes(name: str, count: Any) -> int:
    """How many classes are told of an output, 0 for its values.

    Raises:
        BadTensor: It is no such number.
    """
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _MOST_CLASSES:
        raise errors.BadTensor(
            f"parameter classification of output {errors.quoted(name)} is {errors.quoted(str(count))}; expected 0 to"
            f" {_MOST_CLASSES}",
            metadata={"field": name},
        )
    return count


def _message(request: pb.ModelInferRequest, response: Response) -> pb.ModelInferResponse:
    message = pb.ModelInferResponse(model_name=request.model_name, model_version=str(response.version), id=request.id)
    for name, value in response.parameters.items():
        if isinstance(value, str):
            message.parameters[name].string_param = value
        else:
            message.parameters[name].int64_param = int(value)
    for name, datatype, array in response.outputs:
        tensors.add_output(message, name, datatype, array)
    return message


def _check_repository(name: str) -> None:
    """Checks that a repository exists.

    Raises:
        Unimplemented: There is only the one without a name.
    """
    if name:
        raise errors.Unimplemented(f"repository {errors.quoted(name)} does not exist; expected none: there is one")


def register(servicer: OipServicer, chain: Chain) -> None:
    """Adds the service to a chain, under its name on the wire."""
    handlers = dict[str, Handler]()
    for method in _METHODS:
        streams = method.client_streaming
        of: Callable[..., Handler] = (
            grpc.stream_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        )
        handlers[method.name] = of(getattr(servicer, method.name), response_serializer=serialized)
    chain.undecoded |= {f"/{SERVICE}/ModelInfer", f"/{SERVICE}/ModelStreamInfer"}
    chain.add_registered_method_handlers(SERVICE, handlers)
    chain.direct[f"/{SERVICE}/ModelInfer"] = servicer.take
    chain.refuse_others(
        SERVICE,
        "this server has no shared memory, traces or log settings to change over this protocol; send tensors in the"
        " messages, and see the server's own flags",
    )


def requests() -> dict[str, type[Message]]:
    """The request of every method."""
    return {method.name: GetMessageClass(method.input_type) for method in _METHODS}
