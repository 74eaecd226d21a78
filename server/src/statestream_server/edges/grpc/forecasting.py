"""A call of Forecast: what its request means, and its answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

import numpy as np

from statestream.contract import errors
from statestream.contract.signature import TensorSpec, forecast_values
from statestream.v1 import inference_pb2 as pb
from statestream_server import caller
from statestream_server.arrays import Array, Ints
from statestream_server.drivers.asking import Request, State, StopAt
from statestream_server.drivers.bands import Past
from statestream_server.drivers.paths import Told
from statestream_server.edges.grpc import wire
from statestream_server.engine.table import Table
from statestream_server.engine.watch import tag_of
from statestream_server.server import Server

_BESIDE = 1 << 20
"""What a request may have beside the start that it brings back."""


async def answers(server: Server, request: pb.ForecastRequest) -> AsyncGenerator[pb.ForecastResponse, None]:
    """The messages that answer a call."""
    forecaster = server.forecaster
    asked = _asked(request)
    forecaster.check(asked)
    source = request.WhichOneof("source")
    start = pb.ForecastStart()
    if source in ("session_id", "sessions"):
        table, state = await _sessions(server, request, asked)
        names = [column.name for column in table.dense_columns]
        if sum(array.nbytes for array in state.columns) + _BESIDE <= server.settings.limits.max_message_bytes:
            wire.write(start.columns, names, state.columns)
    elif source == "start":
        table = await server.sessions.table(request.model, request.start.version)
        state = forecaster.read_start(table, [(tensor.name, wire.array_of(tensor)) for tensor in request.start.columns])
        forecaster.check_series(len(state.tags), asked, "start")
        _check_digest(table, request.start.digest)
    elif source == "history":
        table = await server.sessions.table(request.model, request.version, request.alias)
        past = _past(table.model.signature.inputs, request.history, "history")
        asked = replace(asked, cutoffs=_cutoffs(request.cutoffs, len(past.lengths)))
        forecaster.check_series(len(past.lengths), asked, "history")
    else:
        raise errors.BadFrame(
            "a forecast starts from session_id, sessions, history or start; none of them came",
            metadata={"field": "source"},
        )
    if request.cutoffs and source != "history":
        raise errors.BadFrame(f"cutoffs came for {source}; expected a history", metadata={"field": "cutoffs"})
    _check_digest(table, request.digest)
    asked = _fitting(table, request, asked)
    start.version, start.digest = table.model.version, table.model.digest
    names = [value.name for value in forecast_values(table.model.signature)]
    steps = (
        forecaster.from_history(table, past, asked)
        if source == "history"
        else forecaster.from_state(table, state, asked)
    )
    first: pb.ForecastStart | None = start
    async with aclosing(steps):
        async for told in steps:
            yield _response(told, names, first)
            first = None


async def _sessions(server: Server, request: pb.ForecastRequest, asked: Request) -> tuple[Table, State]:
    """Copies of the sessions that a forecast starts from."""
    if request.WhichOneof("source") == "session_id":
        ids, epochs = [request.session_id], [request.epoch]
    else:
        ids = list(request.sessions.ids)
        epochs = wire.optional_column(request.sessions.epochs, "<u8", len(ids), "sessions.epochs").tolist()
        if len(set(ids)) < len(ids):
            raise errors.BadFrame("sessions.ids has one twice; expected each once", metadata={"field": "sessions.ids"})
    server.forecaster.check_series(len(ids), asked, "sessions")
    keys = [caller.key(request.model, id) for id in ids]
    copies = await server.copies.read_all(keys, epochs, version=request.version)
    table = copies[0].table
    server.forecaster.check_begun(
        table,
        np.asarray([copy.position for copy in copies], np.uint64),
        np.asarray([copy.origin for copy in copies], np.uint64),
        ids,
    )
    kept = len(table.dense_columns)
    columns = [np.stack(column) for column in zip(*(copy.values[:kept] for copy in copies), strict=True)]
    tags = np.asarray([tag_of("forecast", *key) for key in keys], np.uint64)
    return table, State(columns, tags)


def _asked(request: pb.ForecastRequest) -> Request:
    """What is asked, as far as it needs no model."""
    stop = request.stop
    series: Array | None = None
    if request.series:
        series = wire.column(request.series, "<u8", len(request.series) // 8, "series")
    return Request(
        horizon=request.horizon,
        samples=request.num_samples,
        seed=request.seed,
        series=series,
        quantiles=tuple(request.quantiles),
        return_samples=request.return_samples,
        conformal=wire.check_enum(request.bands, pb.ForecastBands, "bands") == pb.FORECAST_BANDS_CONFORMAL,
        begin=request.from_step,
        stop=StopAt(stop.output, stop.place, stop.bound, stop.below) if request.HasField("stop") else None,
    )


def _fitting(table: Table, request: pb.ForecastRequest, asked: Request) -> Request:
    """The same with its arrays, which are read by the model's signature."""
    specs = table.model.signature.inputs
    future: Mapping[str, Array] = {}
    if request.future:
        names = {spec.name for spec in specs}
        came = [tensor.name for tensor in request.future]
        if len(set(came)) < len(came) or not set(came) <= names:
            raise errors.BadTensor(
                f"future has {', '.join(map(errors.shortened, came))}; the inputs are {', '.join(sorted(names))}",
                metadata={"field": "future"},
            )
        future = {tensor.name: wire.array_of(tensor) for tensor in request.future}
    past = _past(specs, request.past, "past") if request.HasField("past") else None
    return replace(asked, future=future, past=past)


def _past(specs: Sequence[TensorSpec], history: pb.History, field: str) -> Past:
    """Past inputs, one series after the other."""
    if not history.lengths:
        arrays = wire.inputs_with_axes(specs, history.inputs, (-1, -1), "series, then steps,")
        shapes = {array.shape[:2] for array in arrays}
        if len(shapes) > 1:
            raise errors.BadTensor("the inputs differ in series or steps", metadata={"field": field})
        ((count, steps),) = shapes
        return Past([array.reshape(-1, *array.shape[2:]) for array in arrays], np.full(count, steps, np.int64))
    lengths: Ints = wire.column(history.lengths, "<u4", len(history.lengths) // 4, f"{field}.lengths").astype(np.int64)
    if not lengths.all():
        raise errors.BadTensor(
            f"series {int(np.flatnonzero(lengths == 0)[0])} has no steps; expected 1 at least",
            metadata={"field": field},
        )
    return Past(wire.inputs_with_axes(specs, history.inputs, (int(lengths.sum()),), "the steps of all series"), lengths)


def _cutoffs(data: bytes, count: int) -> Ints | None:
    """[count, W] after how many steps forecasts start, as many for each series; None where it is not said."""
    if not data:
        return None
    if len(data) % (4 * count):
        raise errors.BadFrame(
            f"cutoffs has {len(data)} bytes; expected 4 for each, as many for each of {count} series",
            metadata={"field": "cutoffs"},
        )
    found: Ints = np.frombuffer(data, "<u4").reshape(count, -1).astype(np.int64)
    return found


def _check_digest(table: Table, digest: str) -> None:
    """Checks that a call which goes on where another ended finds the same model.

    Raises:
        ModelChanged: It does not.
    """
    if digest and digest != table.model.digest:
        raise errors.ModelChanged(
            f"version {table.model.version} of {table.model.name!r} is another model here than the one that began the"
            " forecast; ask for it anew"
        )


def _response(told: Told, names: Sequence[str], start: pb.ForecastStart | None) -> pb.ForecastResponse:
    response = pb.ForecastResponse(offset=told.offset, start=start)
    wire.write(response.outputs, names, told.points)
    wire.write(response.quantiles, told.quantiles, told.quantiles.values())
    if told.samples:
        wire.write(response.samples, names, told.samples)
    return response
