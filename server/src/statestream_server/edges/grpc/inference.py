"""InferenceService: the calls that run models. Streams are stream.py's."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from statestream.contract import errors
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc as grpc_stubs
from statestream.v1.tensor_pb2 import Tensor
from statestream_server import caller
from statestream_server.arrays import Array
from statestream_server.edges.grpc import wire
from statestream_server.edges.grpc.caps import Caps
from statestream_server.edges.grpc.failures import Context
from statestream_server.edges.grpc.readers import Readers
from statestream_server.edges.grpc.steps import Steps
from statestream_server.edges.grpc.stream import Stream
from statestream_server.edges.grpc.waiting import Waiting
from statestream_server.server import Server
from statestream_server.sessions.unary import Target
from statestream_server.shapes import unscored
from statestream_server.stores.base import Key, Mode


class InferenceServicer(grpc_stubs.InferenceServiceServicer):
    """Predict, Stream, Step, Forecast and Generate."""

    def __init__(self, server: Server, streams: set[Stream], steps: Steps, caps: Caps, readers: Readers) -> None:
        """Connected streams are kept in `streams`, so that a drain can tell them.

        `steps` takes the usual unary steps, `caps` is what a frame of theirs may have, `readers` watches their writes.
        """
        self._caps = caps
        self._readers = readers
        self._server = server
        self._streams = streams
        self._steps = steps

    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        """Runs a model without memory."""
        predictor = self._server.predictor
        model = predictor.model(request.model, request.version, request.alias)
        asked = predictor.asked(model, request.outputs)
        inputs = wire.named(request.inputs, [spec.name for spec in model.signature.inputs], "inputs")
        response = pb.PredictResponse(version=model.version)
        wire.write(response.outputs, [spec.name for spec in asked.specs], await predictor.predict(asked, inputs))
        return response

    async def Stream(self, _unused: object, context: Context) -> None:
        """Serves one stream until its client half-closes or goes away."""
        with self._readers.follow() as reading:
            stream = Stream(self._server, context, reading, self._caps)
            self._streams.add(stream)
            try:
                await stream.serve()
            finally:
                self._streams.discard(stream)

    async def Step(self, request: pb.StepRequest, context: Context) -> pb.StepResponse:
        """Applies one chunk to one session."""
        waiting = Waiting[pb.StepResponse]()
        if self._steps.take(request, caller.current.get(), waiting):
            return await waiting.message
        unary = self._server.unary
        key = caller.key(request.model, request.session_id)
        target = await unary.target(key, request.version, wire.open_mode(request.mode), request.alias)
        try:
            return await self._step(target, key, request)
        except errors.PositionError:
            if not await unary.moved(target):
                raise
        # The row that was here is not the session any more: what it said of positions is of long ago.
        return await self._step(await unary.target(key, request.version, Mode.RESUME), key, request)

    async def _step(self, target: Target, key: Key, request: pb.StepRequest) -> pb.StepResponse:
        unary = self._server.unary
        steps, signature = _first_length(request.inputs), target.table.model.signature
        mark, inputs = _mark(request), list[Array]()
        if request.score and not target.table.is_scored:
            raise unscored(target.table.model.name)
        if not mark:
            unary.check_steps(steps)
            inputs = wire.packed_inputs(signature.inputs, request.inputs, steps)
        step = await unary.step(
            target,
            key,
            steps,
            inputs,
            position=request.position if request.HasField("position") else None,
            acked=request.acked_position,
            request_id=request.request_id,
            mark=mark,
            cursor=request.cursor,
            scored=request.score,
        )
        response = pb.StepResponse(
            position=step.position,
            durable_position=step.durable,
            epoch=step.epoch,
            version=target.table.model.version,
        )
        if not mark:
            specs = target.table.answers[: len(step.outputs)]
            wire.write(response.outputs, [spec.name for spec in specs], step.outputs)
        return response

    async def Forecast(
        self, request: pb.ForecastRequest, context: Context
    ) -> AsyncGenerator[pb.ForecastResponse, None]:
        """Forecasts from sessions or from histories, one message a step."""
        from statestream_server.edges.grpc import forecasting  # See `Server.forecaster`.

        async with aclosing(forecasting.answers(self._server, request)) as responses:
            async for response in responses:
                yield response

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Decodes texts: one message a token, or whole ones as they come to be."""
        from statestream_server.edges.grpc import generating

        async with aclosing(generating.answers(self._server, request)) as responses:
            async for response in responses:
                yield response


def _mark(request: pb.StepRequest) -> int:
    """What a call sends in place of a chunk, 0 for a chunk.

    Raises:
        BadFrame: There is no such mark, it has inputs, or its cursor is too long or missing.
    """
    mark = wire.check_enum(request.mark, pb.Mark, "mark")
    if mark and request.inputs:
        raise errors.BadFrame("a mark has inputs; expected none", metadata={"field": "inputs"})
    if not wire.check_cursor(request.cursor, "cursor") and mark == pb.MARK_CURSOR:
        raise errors.BadFrame("a mark that carries a cursor has none", metadata={"field": "cursor"})
    return mark


def _first_length(tensors: Sequence[Tensor]) -> int:
    shape = list(tensors[0].shape) if tensors else []
    return shape[0] if shape else 0
