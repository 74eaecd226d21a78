"""The forecast driver: forks that run on, each output becoming the next input."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array, Ints
from statestream_server.drivers import waiting
from statestream_server.engine.engine import Engine
from statestream_server.engine.table import Table
from statestream_server.engine.watch import tag_of, tag_of_arrays
from statestream_server.engine.work import Priority
from statestream_server.settings import Limits


class Forecaster:
    """Forecasts with models whose signature names a feedback."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        """Forecasts run on `engine`, as rows among the others."""
        self._engine = engine
        self._limits = limits

    async def from_session(self, table: Table, row: int, horizon: int) -> AsyncIterator[list[Array]]:
        """Forecasts from a fork of a session; the session does not move.

        Args:
            table: The session's table.
            row: Its row.
            horizon: Steps wanted.

        Yields:
            For every step, one array [1, 1, ...one step] for every fed-back output.

        Raises:
            Unsupported: The model has no feedback, or the session took no step yet.
            TooManySessions: With what is under way, this would be more rows than may be driven.
            SessionNotFound: The session left its row before the forecast began.
        """
        _check(table)
        rows, serial = np.asarray([row]), int(table.serial[row])
        await self._engine.settled(table, rows)
        if not table.position[row]:
            raise errors.Unsupported("a forecast starts from the session's last output; apply one step at least first")
        async with self._engine.still():
            if int(table.serial[row]) != serial:
                raise errors.SessionNotFound("the session was closed before its forecast began; ask again")
            waiting.check_rows(table, 1, self._limits)
            forks = table.allocate(1, scratch=True)
            table.tag[forks] = tag_of("forecast", table.tag[rows].tobytes())
            table.rows.copy(rows, forks)
        async for outputs in self._roll(table, forks, horizon):
            yield outputs

    async def from_history(self, table: Table, history: list[Array], horizon: int) -> AsyncIterator[list[Array]]:
        """Forecasts from fresh rows that are warmed up on past inputs.

        Args:
            table: The model's table.
            history: One array [N, T, ...one step] for every input.
            horizon: Steps wanted.

        Yields:
            For every step, one array [N, 1, ...one step] for every fed-back output.

        Raises:
            Unsupported: The model has no feedback.
            BadFrame: There are more series than one forecast may have.
            TooManySessions: With what is under way, these would be more rows than may be driven.
            NonFiniteState: The history, or the forecast itself, left the finite numbers.
        """
        _check(table)
        series, past = history[0].shape[:2]
        if series > self._limits.max_forecast_series:
            raise errors.BadFrame(
                f"{series} series came; expected at most {self._limits.max_forecast_series} in one forecast. Ask for"
                " fewer at a time",
                metadata={"field": "history", "came": str(series), "expected": str(self._limits.max_forecast_series)},
            )
        waiting.check_rows(table, series, self._limits)
        async with self._engine.still():
            rows = table.allocate(series, scratch=True)
            table.tag[rows] = tag_of_arrays(history)
            table.rows.reset(rows)
        async for outputs in self._roll(table, rows, horizon, history, past):
            yield outputs

    async def _roll(
        self, table: Table, rows: Ints, horizon: int, history: list[Array] | None = None, past: int = 0
    ) -> AsyncIterator[list[Array]]:
        """Steps rows and releases them at the end, whatever ends it."""
        signature = table.model.signature
        states = len(signature.states)
        ones = np.ones(len(rows), np.int64)
        places = {feedback.input: index for index, feedback in enumerate(signature.feedback)}
        try:
            if history is not None:
                packed = [array.reshape(-1, *array.shape[2:]) for array in history]
                await waiting.run(self._engine, table, rows, ones * past, packed, Priority.FORECAST, wanted=False)
            for step in range(horizon):
                async with self._engine.still():
                    last = table.rows.read(rows)[states:]
                yield [array[:, None] for array in last]
                if step + 1 < horizon:
                    inputs = [last[places[spec.name]] for spec in signature.inputs]
                    await waiting.run(self._engine, table, rows, ones, inputs, Priority.FORECAST, wanted=False)
        finally:
            table.release(rows)


def _check(table: Table) -> None:
    if not table.model.signature.feedback:
        raise errors.Unsupported(
            f"model {table.model.name!r} cannot forecast: its signature names no output that becomes the next input"
        )
