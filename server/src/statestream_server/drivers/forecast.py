"""The forecast driver: forks that run on, each output becoming the next input."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import numpy as np

from statestream.contract import errors
from statestream.contract.signature import Signature
from statestream_server.arrays import Array, Ints
from statestream_server.drivers import waiting
from statestream_server.drivers.bounds import check_answer, check_rows
from statestream_server.engine.engine import Engine
from statestream_server.engine.table import Table
from statestream_server.engine.watch import tag_of, tag_of_arrays
from statestream_server.engine.work import Priority
from statestream_server.sessions.admin.admin import Copy
from statestream_server.sessions.admission.accounts import COPIES, Budget
from statestream_server.settings import Limits
from statestream_server.shapes import step_bytes
from statestream_server.stores.base import Key


class Forecaster:
    """Forecasts with models whose signature names a feedback."""

    def __init__(self, engine: Engine, limits: Limits, budget: Budget) -> None:
        """Forecasts run on `engine`, as rows among the others; `budget` is what they may hold together."""
        self._engine = engine
        self._limits = limits
        self._budget = budget

    def check_horizon(self, horizon: int) -> None:
        """Checks how many steps are wanted, before anything is done for them.

        Raises:
            BadFrame: Too many, or none.
        """
        limit = self._limits.max_horizon
        if not 1 <= horizon <= limit:
            raise errors.BadFrame(f"horizon is {horizon}; expected 1 to {limit}", metadata={"field": "horizon"})

    async def from_session(self, key: Key, copy: Copy, horizon: int) -> AsyncGenerator[list[Array], None]:
        """Forecasts from a copy of a session; the session does not move.

        Args:
            key: The session.
            copy: What was read of it.
            horizon: Steps wanted.

        Yields:
            For every step, one array [1, 1, ...one step] for every fed-back output.

        Raises:
            Unsupported: The model has no feedback, or the session took no step yet.
            TooManySessions, Overloaded: With what is under way, this would be more than may be driven.
            AnswerTooLarge: A step has more bytes than the server sends.
        """
        table = copy.table
        _check(table)
        self._check_answer(table, 1)
        if copy.position == copy.origin:
            raise errors.Unsupported("a forecast starts from the session's last output; apply one step at least first")
        with self._budget.holding(0):
            async with self._engine.still():
                check_rows(table, 1, self._limits)
                fork = table.allocate(1, scratch=True)
                try:
                    table.tag[fork] = tag_of("forecast", *key)
                    table.rows.write(fork, [value[None] for value in copy.values])
                except BaseException:
                    table.release(fork)
                    raise
            async with aclosing(self._roll(table, fork, horizon)) as steps:
                async for outputs in steps:
                    yield outputs

    async def from_history(self, table: Table, history: list[Array], horizon: int) -> AsyncGenerator[list[Array], None]:
        """Forecasts from fresh rows that are warmed up on past inputs.

        Args:
            table: The model's table.
            history: One array [N, T, ...one step] for every input, each as the signature says.
            horizon: Steps wanted.

        Yields:
            For every step, one array [N, 1, ...one step] for every fed-back output.

        Raises:
            Unsupported: The model has no feedback.
            BadTensor: The inputs differ in series or steps.
            BadFrame: There are more series than one forecast may have.
            TooManySessions, Overloaded: With what is under way, these would be more than may be driven.
            AnswerTooLarge: A step has more bytes than the server sends.
            NonFiniteState: The history, or the forecast itself, left the finite numbers.
        """
        if len({array.shape[:2] for array in history}) > 1:
            raise errors.BadTensor("the inputs differ in series or steps", metadata={"field": "history"})
        self._check_answer(table, len(history[0]))
        # What came stays in memory as long as the call does, even where only a row is left of it.
        with self._budget.holding(COPIES * sum(array.nbytes for array in history)):
            rows = await self._fresh(table, history)
            async with aclosing(self._roll(table, rows, horizon, history, history[0].shape[1])) as steps:
                async for outputs in steps:
                    yield outputs

    async def _fresh(self, table: Table, history: list[Array]) -> Ints:
        """A scratch row for every series, as new sessions have them."""
        _check(table)
        series = len(history[0])
        if series > self._limits.max_forecast_series:
            raise errors.BadFrame(
                f"{series} series came; expected at most {self._limits.max_forecast_series} in one forecast. Ask for"
                " fewer at a time",
                metadata={"field": "history", "came": str(series), "expected": str(self._limits.max_forecast_series)},
            )
        check_rows(table, series, self._limits)
        async with self._engine.still():
            rows = table.allocate(series, scratch=True)
            table.tag[rows] = tag_of_arrays(history)
            table.rows.reset(rows)
        return rows

    def _check_answer(self, table: Table, series: int) -> None:
        fed = set(fed_back(table.model.signature))
        outputs = [spec for spec in table.model.signature.outputs if spec.name in fed]
        check_answer(table.model, series * sum(map(step_bytes, outputs)), self._limits)

    async def _roll(
        self, table: Table, rows: Ints, horizon: int, history: list[Array] | None = None, past: int = 0
    ) -> AsyncGenerator[list[Array], None]:
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


def fed_back(signature: Signature) -> list[str]:
    """The outputs that become the next input, which are what a forecast yields, in its order."""
    return [feedback.output for feedback in signature.feedback]


def _check(table: Table) -> None:
    if not table.model.signature.feedback:
        raise errors.Unsupported(
            f"model {table.model.name!r} cannot forecast: its signature names no output that becomes the next input"
        )
