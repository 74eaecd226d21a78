"""InferenceService: the calls that run models. Streams are stream.py's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from statestream.contract import errors
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc as grpc_stubs
from statestream.v1.tensor_pb2 import Tensor
from statestream_server.edges.grpc import wire
from statestream_server.edges.grpc.caps import Caps
from statestream_server.edges.grpc.failures import Context
from statestream_server.edges.grpc.readers import Readers
from statestream_server.edges.grpc.stream import Stream
from statestream_server.models.model import Model
from statestream_server.server import Server
from statestream_server.sessions.admission.accounts import COPIES
from statestream_server.sessions.admission.intake import too_large
from statestream_server.sessions.ownership.openings import pinned


class InferenceServicer(grpc_stubs.InferenceServiceServicer):
    """Predict, Stream, Step, Forecast and Generate."""

    def __init__(self, server: Server, streams: set[Stream], caps: Caps, readers: Readers) -> None:
        """Connected streams are kept in `streams`, so that a drain can tell them.

        Their frames are checked by `caps`, their writes watched by `readers`.
        """
        self._caps = caps
        self._readers = readers
        self._server = server
        self._streams = streams

    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        """Runs a model without memory."""
        model = self._server.registry.get(request.model, request.version).model
        if model.graph is None:
            verb = "open a session" if model.kind == "session" else "call generate"
            raise errors.Unsupported(f"model {model.name!r} has memory; {verb} instead")
        signature, budget = model.signature, self._server.budgets.predictions
        inputs = wire.graph_inputs(signature.inputs, request.inputs)
        wanted = _wanted([spec.name for spec in signature.outputs], request.outputs)
        specs = [signature.outputs[index] for index in wanted]
        batched = all(spec.HasField("batch_axis") for spec in [*signature.inputs, *signature.outputs])
        axes = [spec.batch_axis for spec in signature.inputs] if batched else []
        output_axes = [spec.batch_axis for spec in signature.outputs] if batched else []
        rows, came = inputs[0].shape[axes[0]] if axes else 1, sum(array.nbytes for array in inputs)
        self._check_size(model, wire.known_bytes(specs, rows))
        # Outputs of free shape are taken to be as large as the inputs: more is known once they are there.
        with budget.holding(COPIES * came + max(came, wire.known_bytes(signature.outputs, rows))):
            outputs = await self._server.engine.predict(model.graph, inputs, axes, output_axes, model.mark)
        chosen = [outputs[index] for index in wanted]
        self._check_size(model, sum(array.nbytes for array in chosen))
        response = pb.PredictResponse(version=model.version)
        wire.write(response.outputs, [spec.name for spec in specs], chosen)
        return response

    async def Stream(self, _unused: object, context: Context) -> None:
        """Serves one stream until its client half-closes or goes away."""
        with self._readers.follow() as reading:
            stream = Stream(self._server, context, self._caps, reading)
            self._streams.add(stream)
            try:
                await stream.serve()
            finally:
                self._streams.discard(stream)

    async def Step(self, request: pb.StepRequest, context: Context) -> pb.StepResponse:
        """Applies one chunk to one session."""
        unary = self._server.unary
        target = await unary.target(request.model, request.version, request.session_id, wire.open_mode(request.mode))
        steps, signature = _first_length(request.inputs), target.table.model.signature
        limit = self._server.settings.limits.max_chunk_steps
        if not 1 <= steps <= limit:
            raise errors.BadFrame(f"the chunk has {steps} steps; expected 1 to {limit}", metadata={"field": "inputs"})
        step = await unary.step(
            target,
            request.session_id,
            steps,
            wire.packed_inputs(signature.inputs, request.inputs, steps),
            position=request.position if request.HasField("position") else None,
            acked=request.acked_position,
            request_id=request.request_id,
        )
        response = pb.StepResponse(
            position=step.position,
            durable_position=step.durable,
            epoch=step.epoch,
            version=target.table.model.version,
        )
        wire.write(response.outputs, [spec.name for spec in signature.outputs], step.outputs)
        return response

    async def Forecast(self, request: pb.ForecastRequest, context: Context) -> AsyncIterator[pb.ForecastResponse]:
        """Forecasts from a session or from histories, one message a step."""
        limit = self._server.settings.limits.max_horizon
        if not 1 <= request.horizon <= limit:
            raise errors.BadFrame(f"horizon is {request.horizon}; expected 1 to {limit}", metadata={"field": "horizon"})
        held, budget = 0, self._server.budgets.forecasts
        source = request.WhichOneof("source")
        if source == "session_id":
            table, row, _ = await self._server.unary.resident(request.model, request.session_id)
            if request.version not in (0, table.model.version):
                raise pinned(request.session_id, table.model.version, request.version)
            steps = self._server.forecaster.from_session(table, row, request.horizon)
        elif source == "history":
            table = await self._server.sessions.table(request.model, request.version)
            specs = table.model.signature.inputs
            history = wire.inputs_with_axes(specs, request.history.inputs, (-1, -1), "series, then steps,")
            if len({array.shape[:2] for array in history}) > 1:
                raise errors.BadTensor("the inputs differ in series or steps", metadata={"field": "history"})
            steps = self._server.forecaster.from_history(table, history, request.horizon)
            held = COPIES * sum(array.nbytes for array in history)
        else:
            raise errors.BadFrame(
                "a forecast starts from session_id or history; neither came", metadata={"field": "source"}
            )
        names = [feedback.output for feedback in table.model.signature.feedback]
        outputs_fed = [spec for spec in table.model.signature.outputs if spec.name in names]
        series = len(history[0]) if source == "history" else 1
        self._check_size(table.model, series * sum(port.nbytes for port in wire.ports(outputs_fed)))
        offset = 0
        try:
            # What came stays in memory as long as the call does, even where only a row is left of it.
            with budget.holding(held):
                async for outputs in steps:
                    response = pb.ForecastResponse(offset=offset)
                    wire.write(response.outputs, names, outputs)
                    yield response
                    offset += 1
        finally:
            await steps.aclose()  # type: ignore[attr-defined]  # an async generator has it, its protocol not

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        """Decodes a text, one message a token."""
        served = self._server.registry.get(request.model, request.version)
        if served.model.kind != "generate" or served.table is None:
            raise errors.Unsupported(f"model {request.model!r} is no encoder-decoder; it cannot generate")
        tokens = self._server.generator.generate(served.model, served.table, request.text, request.max_tokens)
        try:
            with self._server.budgets.texts.holding(COPIES * len(request.text)):
                async for token in tokens:
                    yield pb.GenerateResponse(
                        text=token.text, token=token.number, log_probability=token.log_probability
                    )
        finally:
            await tokens.aclose()  # type: ignore[attr-defined]  # an async generator has it, its protocol not

    def _check_size(self, model: Model, size: int) -> None:
        """Checks what an answer has, known or measured.

        Raises:
            AnswerTooLarge: It is more than the server sends.
        """
        most = self._server.settings.limits.max_answer_bytes
        if size > most:
            remedy = "Ask for fewer rows or outputs at a time, or raise --max-answer-bytes"
            raise too_large(f"the outputs of model {model.name!r}", size, most, remedy)


def _wanted(names: list[str], asked: Sequence[str]) -> list[int]:
    unknown = [name for name in asked if name not in names]
    if len(set(asked)) < len(asked):
        raise errors.BadTensor(
            f"outputs has {len(asked)} names, {len(set(asked))} of them different; expected each once at most",
            metadata={"field": "outputs"},
        )
    if unknown:
        raise errors.BadTensor(
            f"output {errors.quoted(unknown[0])} does not exist; the model has {', '.join(names)}",
            metadata={"field": "outputs"},
        )
    return [names.index(name) for name in asked] or list(range(len(names)))


def _first_length(tensors: Sequence[Tensor]) -> int:
    shape = list(tensors[0].shape) if tensors else []
    return shape[0] if shape else 0
