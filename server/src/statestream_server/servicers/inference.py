"""InferenceService: the calls that run models. Streams are stream.py's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np

from statestream import errors
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc as grpc_stubs
from statestream.v1.tensor_pb2 import Tensor
from statestream_server.arrays import Array
from statestream_server.engine import digests
from statestream_server.engine.lengths import Lengths
from statestream_server.engine.table import UNBOUND, Table
from statestream_server.server import Server
from statestream_server.servicers import wire
from statestream_server.servicers.failures import Context, abort, server_stream, unary
from statestream_server.servicers.stream import Stream
from statestream_server.sessions.accounts import COPIES
from statestream_server.sessions.intake import Chunks, Refusal, error_at
from statestream_server.sessions.openings import pinned
from statestream_server.stores.base import Mode


class InferenceServicer(grpc_stubs.InferenceServiceServicer):
    """Predict, Stream, Step, Forecast and Generate."""

    def __init__(self, server: Server, streams: set[Stream]) -> None:
        """Connected streams are kept in `streams`, so that a drain can tell them."""
        self._server = server
        self._streams = streams
        self.caps = server.caps

    @unary
    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        """Runs a model without memory."""
        model = self._server.registry.get(request.model, request.version).model
        if model.graph is None:
            verb = "open a session" if model.kind == "session" else "call generate"
            raise errors.Unsupported(f"model {model.name!r} has memory; {verb} instead")
        signature, budget = model.signature, self._server.budgets.predictions
        budget.check()
        inputs = wire.graph_inputs(signature.inputs, request.inputs)
        wanted = _wanted([spec.name for spec in signature.outputs], request.outputs)
        batched = all(spec.HasField("batch_axis") for spec in [*signature.inputs, *signature.outputs])
        axes = [spec.batch_axis for spec in signature.inputs] if batched else []
        output_axes = [spec.batch_axis for spec in signature.outputs] if batched else []
        # An answer is taken to be as large as its inputs: more is known once it is there.
        with budget.holding((COPIES + 1) * sum(array.nbytes for array in inputs)):
            outputs = await self._server.engine.predict(model.graph, inputs, axes, output_axes, model.mark)
        answer = wire.tensors(signature.outputs, outputs)
        return pb.PredictResponse(version=model.version, outputs=[answer[index] for index in wanted])

    async def Stream(self, _unused: object, context: Context) -> None:
        """Serves one stream until its client half-closes or goes away."""
        stream = Stream(self._server, context)
        self._streams.add(stream)
        try:
            await stream.serve()
        except Exception as error:
            await abort(context, error)
        finally:
            self._streams.discard(stream)

    @unary
    async def Step(self, request: pb.StepRequest, context: Context) -> pb.StepResponse:
        """Applies one chunk to one session."""
        table, row = await self._open(request)
        rows = np.asarray([row])
        steps = _first_length(request.inputs)
        limit = self._server.settings.limits.max_chunk_steps
        if not 1 <= steps <= limit:
            raise errors.BadFrame(f"the chunk has {steps} steps; expected 1 to {limit}", metadata={"field": "inputs"})
        inputs = wire.packed_inputs(table.model.signature.inputs, request.inputs, steps)
        request_id = digests.of_text(request.request_id) if request.request_id else 0
        serial = int(table.serial[row])
        while table.claiming[row] or not table.lane.idle(rows).all():
            await self._server.sessions.undisputed(table, rows)
            await self._server.engine.settled(table, rows)
        if int(table.serial[row]) != serial:
            if self._server.sessions.find(request.model, request.session_id) is not None:
                raise errors.SessionMoved(
                    f"session {request.session_id!r} was opened anew meanwhile; send the chunk again"
                )
            raise errors.SessionNotFound(f"session {request.session_id!r} was closed meanwhile")
        start = self._start(request, table, row, request_id)
        # Without an acknowledgement, asking for the next chunk acknowledges the replies before it.
        acked = max(request.acked_position, start)
        answer = _Answer()
        chunks = Chunks(
            table,
            rows,
            np.zeros(1, np.uint32),
            np.asarray([start], np.uint64),
            np.asarray([acked], np.uint64),
            Lengths(1, steps),
            inputs,
            request_id,
        )
        claims = table.claims(rows)
        with self._server.budgets.steps.holding(steps * (COPIES * table.input_bytes + table.output_bytes)):
            self._server.intake.accept(chunks, answer)
            outputs = await answer.outputs
        if not request.HasField("position"):
            # The caller could not tell a repeated step from a new one after a crash: make this one durable first.
            await self._server.saver.flush(table, rows)
            if not table.are_claimed(rows, claims).all():
                raise errors.SessionMoved(_OVERTAKEN)
        return pb.StepResponse(
            position=start + steps,
            durable_position=int(table.durable[row]),
            epoch=int(table.epoch[row]),
            version=table.model.version,
            outputs=wire.tensors(table.model.signature.outputs, outputs),
        )

    @server_stream
    async def Forecast(self, request: pb.ForecastRequest, context: Context) -> AsyncIterator[pb.ForecastResponse]:
        """Forecasts from a session or from histories, one message a step."""
        limit = self._server.settings.limits.max_horizon
        if not 1 <= request.horizon <= limit:
            raise errors.BadFrame(f"horizon is {request.horizon}; expected 1 to {limit}", metadata={"field": "horizon"})
        held, budget = 0, self._server.budgets.forecasts
        budget.check()
        source = request.WhichOneof("source")
        if source == "session_id":
            table, row = await self._resident(request.model, request.session_id)
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
        offset = 0
        try:
            # What came stays in memory as long as the call does, even where only a row is left of it.
            with budget.holding(held):
                async for outputs in steps:
                    named = [wire.tensor(name, array) for name, array in zip(names, outputs, strict=True)]
                    yield pb.ForecastResponse(offset=offset, outputs=named)
                    offset += 1
        finally:
            await steps.aclose()  # type: ignore[attr-defined]  # an async generator has it, its protocol not

    @server_stream
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

    async def _open(self, request: pb.StepRequest) -> tuple[Table, int]:
        """The session of a unary call: the row where callers without a stream have it, else claimed anew."""
        mode = wire.open_mode(request.mode)
        where = self._server.sessions.find(request.model, request.session_id)
        if where is not None and mode in (Mode.EITHER, Mode.RESUME):
            table, row = where
            if int(table.owner[row]) == UNBOUND and request.version in (0, table.model.version):
                return where
        return await self._claim(request.model, request.version, request.session_id, mode)

    async def _resident(self, model: str, session: str) -> tuple[Table, int]:
        """A session's row; one that is only stored is brought back."""
        await self._server.copies.check_owner(model, session)
        where = self._server.sessions.find(model, session)
        return where if where is not None else await self._claim(model, 0, session, Mode.RESUME)

    async def _claim(self, model: str, version: int, session: str, mode: Mode) -> tuple[Table, int]:
        opened = await self._server.sessions.open_one(model, version, session, mode, self._server.writer)
        return opened.table, int(opened.rows[0])

    def _start(self, request: pb.StepRequest, table: Table, row: int, request_id: int) -> int:
        if request.HasField("position"):
            return request.position
        position = int(table.position[row])
        kept = table.replies.replies(row)
        repeated = request_id and int(table.request[row]) == request_id and kept
        return kept[-1].start if repeated else position


_OVERTAKEN = "the chunk was applied; before its reply could leave, a newer writer opened the session"


class _Answer:
    """Takes the reply to a unary call."""

    def __init__(self) -> None:
        self.outputs: asyncio.Future[Sequence[Array]] = asyncio.get_running_loop().create_future()

    def results(self, chunks: Chunks, outputs: Sequence[Array]) -> None:
        if not self.outputs.done():
            self.outputs.set_result(outputs)

    def refused(self, chunks: Chunks, refusal: Refusal) -> None:
        if not self.outputs.done():
            self.outputs.set_exception(error_at(refusal, 0))

    def overtaken(self, chunks: Chunks) -> None:
        self.refused(chunks, errors.SessionMoved(_OVERTAKEN))


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
