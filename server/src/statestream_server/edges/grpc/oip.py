"""GRPCInferenceService: the Open Inference Protocol over gRPC; messages in, messages out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from time import monotonic
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from statestream.contract import errors
from statestream_server.edges.grpc.caps import MAX_TENSORS, Caps
from statestream_server.edges.grpc.chain import Chain, Handler
from statestream_server.edges.grpc.decoding import Unreadable
from statestream_server.edges.grpc.failures import Context, told
from statestream_server.edges.grpc.readers import Readers
from statestream_server.edges.oip import about, parameters, tensors
from statestream_server.edges.oip import oip_pb2 as pb
from statestream_server.edges.oip.inference import Inference, Request, Response
from statestream_server.registry import Served
from statestream_server.server import Readiness, Server
from statestream_server.sessions.admission.accounts import COPIES, OVERHEAD, Accounts

SERVICE: Final = "inference.GRPCInferenceService"
"""What the service is called on the wire."""
_MOST_UNDER_WAY: Final = 256
"""Requests of one stream that are under way; it is not read on beyond that."""
_MOST_CLASSES: Final = 1 << 16
_METHODS: Final = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
_Came: TypeAlias = "pb.ModelInferRequest | Unreadable"
"""What comes on a stream."""
_Key: TypeAlias = tuple[str, str]
"""A model and a sequence of it."""


class OipServicer:
    """Answers clients of the Open Inference Protocol."""

    def __init__(self, server: Server, readiness: Readiness, caps: Caps, readers: Readers) -> None:
        """Calls go to the server's rooms; `readiness` says whether it serves.

        `caps` is what a request of a stream may have, `readers` watches the writes of streams.
        """
        self._server = server
        self._registry, self._selection = server.registry, server.selection
        self._readiness, self._caps, self._readers = readiness, caps, readers
        self._inference = Inference(server)

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
        version = parameters.version_of(request.version)
        if request.name:
            self._registry.get(request.name, version)
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

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """Runs a model, or the next steps of a sequence."""
        return await self._infer(request)

    async def ModelStreamInfer(self, requests: AsyncIterator[_Came], context: Context) -> None:
        """The same for the requests of a stream, those of one sequence in their order, others beside each other.

        An error is told in the stream, which goes on. It is read on as long as what is under way is not too much.
        """
        under_way, last = _UnderWay(self._server.accounts), dict[_Key, asyncio.Task[None]]()
        writing = asyncio.Lock()

        async def answer(request: _Came, before: asyncio.Task[None] | None) -> None:
            if before is not None:
                await asyncio.wait((before,))
            response = await self._streamed(request)
            del request
            async with writing:
                reading.since = monotonic()
                await context.write(response)
                reading.since = None

        with self._readers.follow() as reading:
            async with asyncio.TaskGroup() as tasks:
                async for request in requests:
                    size = self._size(request)
                    await under_way.room(size)
                    key = _sequence_key(request)
                    task = tasks.create_task(answer(request, last.get(key) if key else None))
                    under_way.take(size, task)
                    if key:
                        last[key] = task
                        task.add_done_callback(partial(_forget, last, key))

    def _size(self, request: _Came) -> int:
        """About how many bytes a request is to the server, with what it is answered."""
        if isinstance(request, Unreadable):
            return OVERHEAD
        shapes = {tensor.name: tensor.shape for tensor in request.inputs[:MAX_TENSORS]}
        answer = self._inference.answer_bytes(request.model_name, request.model_version, shapes)
        return OVERHEAD + COPIES * request.ByteSize() + answer

    async def _streamed(self, request: _Came) -> pb.ModelStreamInferResponse:
        """The answer to a request of a stream; an error is one, too."""
        try:
            if isinstance(request, Unreadable):
                raise request.error
            self._caps.check(request)
            return pb.ModelStreamInferResponse(infer_response=await self._infer(request))
        except Exception as error:
            failed = told(error)
            response = pb.ModelStreamInferResponse(error_message=f"{failed.reason}: {failed.message}")
            if not isinstance(request, Unreadable):
                response.infer_response.id = request.id
            return response

    async def _infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
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
        return self._registry.get(name, parameters.version_of(version))


class _UnderWay:
    """What the requests of one stream make the server hold until they are answered."""

    def __init__(self, accounts: Accounts) -> None:
        """Nothing yet; all streams together, of our own protocol too, have `accounts`."""
        self._account = accounts.open()
        self._window = self._account.window()
        self._count = 0
        self._less: asyncio.Future[None] | None = None

    async def room(self, size: int) -> None:
        """Returns when there is room for a request; one has room where there is nothing else."""
        while self._count and (self._count >= _MOST_UNDER_WAY or self._window.held + size > self._window.most):
            self._less = asyncio.get_running_loop().create_future()
            await self._less
        await self._account.room()

    def take(self, size: int, task: asyncio.Task[None]) -> None:
        """Counts a request until its task ends, however it does."""
        self._count += 1
        self._account.take(size, self._window)
        task.add_done_callback(partial(self._give, size))

    def _give(self, size: int, _task: asyncio.Task[None]) -> None:
        self._count -= 1
        self._account.give(size, self._window)
        if self._less is not None and not self._less.done():
            self._less.set_result(None)


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


def _forget(last: dict[_Key, asyncio.Task[None]], key: _Key, done: asyncio.Task[None]) -> None:
    """Lets go of the last request of a sequence, once nobody can wait for it."""
    if last.get(key) is done:
        del last[key]


def _sequence_key(request: _Came) -> _Key | None:
    """What requests have in common that wait for each other."""
    if isinstance(request, Unreadable):
        return None
    named = request.parameters.get("sequence_id")
    value = named is not None and (named.string_param or named.int64_param or named.uint64_param)
    return (request.model_name, str(value)) if value else None


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
        serialize = GetMessageClass(method.output_type).SerializeToString
        handlers[method.name] = of(getattr(servicer, method.name), response_serializer=serialize)
    chain.add_registered_method_handlers(SERVICE, handlers)
    chain.refuse_others(
        SERVICE,
        "this server has no shared memory, traces or log settings to change over this protocol; send tensors in the"
        " messages, and see the server's own flags",
    )


def requests() -> dict[str, type[Message]]:
    """The request of every method."""
    return {method.name: GetMessageClass(method.input_type) for method in _METHODS}
