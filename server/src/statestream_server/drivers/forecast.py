"""The forecast driver: what a caller may ask of a forecast, and the drive that answers it."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

import numpy as np

from statestream.contract import errors
from statestream.contract.signature import (
    Signature,
    Value,
    forecast_outputs,
    forecast_values,
    is_spread,
    known_places,
    numpy_dtype,
    step_shape,
    steps_before,
)
from statestream_server.arrays import Array, Ints, Positions
from statestream_server.drivers import bands, heads
from statestream_server.drivers.asking import (
    Request,
    State,
    bad,
    check_finite,
    of_cutoffs,
    shifted,
    stop_of,
    where,
)
from statestream_server.drivers.bands import Bands, Past
from statestream_server.drivers.bounds import check_answer
from statestream_server.drivers.drive import Drive, roll
from statestream_server.drivers.paths import Asked, Known, Paths, Told, places_of
from statestream_server.drivers.walks import walk
from statestream_server.engine.engine import Engine
from statestream_server.engine.table import Table
from statestream_server.engine.watch import tag_of_arrays
from statestream_server.engine.work import Priority
from statestream_server.models.rows import is_checked
from statestream_server.sessions.admission.accounts import COPIES, Budget
from statestream_server.settings import Limits


class Forecaster:
    """Forecasts with models that feed back, have a head, or give several steps at once."""

    def __init__(self, engine: Engine, limits: Limits, budget: Budget) -> None:
        """Forecasts run on `engine`, as rows among the others; `budget` is what they may hold together."""
        self._engine = engine
        self._limits = limits
        self._budget = budget

    def check(self, request: Request) -> None:
        """Checks what is asked as far as it needs no model, before anything is done for it.

        Raises:
            BadFrame: Something has a value that it cannot have; `metadata["field"]` names it.
        """
        most = self._limits.max_horizon
        if not 1 <= request.horizon <= most:
            raise bad("horizon", f"{request.horizon}; expected 1 to {most}")
        if request.samples > self._limits.max_forecast_samples:
            raise bad("num_samples", f"{request.samples}; expected at most {self._limits.max_forecast_samples}")
        wrong = [level for level in request.quantiles if not 0 < level < 1]
        if wrong:
            raise bad("quantiles", f"{wrong[0]:g}; expected numbers between 0 and 1, neither of them")
        if request.begin > request.horizon:
            raise bad("from_step", f"{request.begin}; the horizon is {request.horizon}")
        if request.return_samples and not request.samples:
            raise bad("num_samples", "0, and samples are wanted; expected 1 at least")
        if request.conformal and not request.quantiles:
            raise bad("quantiles", "empty, and bands are wanted; expected one at least")
        if request.conformal and request.samples:
            raise bad("num_samples", f"{request.samples} beside conformal bands, which are of errors; expected 0")
        if request.stop is not None and math.isnan(request.stop.bound):
            raise bad("stop", "nan; expected a number")

    def check_series(self, count: int, request: Request, source: str) -> None:
        """Checks of how many series a forecast is.

        Raises:
            BadFrame: Too many, or other columns have another length.
        """
        most = self._limits.max_forecast_series
        if not 1 <= count <= most:
            raise errors.BadFrame(
                f"{count} series came; expected 1 to {most} in one forecast. Ask for fewer at a time",
                metadata={"field": source, "came": str(count), "expected": str(most)},
            )
        if request.series is not None and len(request.series) != count:
            raise bad("series", f"{len(request.series)} numbers; expected one for each of {count} series")
        if request.cutoffs is not None and request.cutoffs.size > most:
            raise errors.BadFrame(
                f"{request.cutoffs.size} cutoffs came; expected 1 to {most} in one forecast. Ask for fewer at a time",
                metadata={"field": "cutoffs", "came": str(request.cutoffs.size), "expected": str(most)},
            )

    async def from_history(self, table: Table, past: Past, request: Request) -> AsyncGenerator[Told, None]:
        """Forecasts from fresh rows that are warmed up on past inputs.

        Args:
            table: The model's table.
            past: The histories.
            request: What `check` let through.

        Yields:
            Step by step, as they are read.

        Raises:
            Unsupported: The model cannot forecast, or not so.
            BadTensor: Histories or future inputs do not fit the model; names what, the series and the step.
            BadFrame: What is asked for does not go with the model.
            TooManySessions, Overloaded: With what is under way, these would be more than may be driven.
            AnswerTooLarge: A step has more bytes than the server sends.
            NonFiniteState: The forecast left the finite numbers.
        """
        signature, count = table.model.signature, len(past.lengths)
        window = steps_before(signature)
        short = np.flatnonzero(past.lengths < window)
        if len(short):
            raise errors.BadTensor(
                f"series {short[0]} has {past.lengths[short[0]]} steps; model {table.model.name!r} looks back"
                f" {window} before it forecasts",
                metadata={"field": "history", "series": str(short[0]), "expected": str(window)},
            )
        check_finite(signature.inputs, past, "history")
        if request.cutoffs is None:
            asked = self._asked(table, request, count, ahead=True)
            past, cutoffs = shifted(signature, past, request.future), past.lengths[:, None]
        else:
            cutoffs = request.cutoffs
            request, known = of_cutoffs(signature, past, request, cutoffs)
            asked = self._asked(table, request, cutoffs.size, ahead=True, known=known)
            past = shifted(signature, past, None)
        if request.conformal:
            bands.check(signature, cutoffs, asked.horizon, request.quantiles)
        tags = np.full(count, tag_of_arrays(past.inputs), np.uint64)
        # What came stays in memory as long as the call does, even where only a row is left of it.
        held = COPIES * sum(array.nbytes for array in past.inputs)
        with self._budget.holding(held + self._driven_bytes(table, asked)):
            bands_ = await self._bands(table, past, cutoffs, asked, tags, request)
            drive = self._drive(table, asked)
            async with drive:
                if request.cutoffs is None:
                    await drive.begin(tags, count=count)
                    await drive.warm(past.lengths, past.inputs)
                else:
                    await self._walk(drive, past, cutoffs, tags)
                async with aclosing(self._roll(drive, asked, request.begin, bands_)) as steps:
                    async for told in steps:
                        yield told

    async def from_state(self, table: Table, state: State, request: Request) -> AsyncGenerator[Told, None]:
        """Forecasts from copies of rows, which do not move: of sessions, or of where an earlier call started.

        Args:
            table: The model's table.
            state: What the rows held, after `steps_before` at least.
            request: What `check` let through.

        Yields:
            As `from_history`.

        Raises:
            StatestreamError: As `from_history`.
        """
        signature, count = table.model.signature, len(state.tags)
        asked = self._asked(table, request, count, ahead=False)
        past = request.past
        if request.conformal:
            if past is None:
                raise bad("past", "missing; of a session the server has no past inputs, which errors are taken from")
            if len(past.lengths) != count:
                raise bad("past", f"of {len(past.lengths)} series; expected one for each of {count} sessions")
            check_finite(signature.inputs, past, "past")
            # The last of them would need the first future value; a session has had it.
            past = shifted(signature, past, None)
            bands.check(signature, past.lengths[:, None], asked.horizon, request.quantiles)
        held = COPIES * sum(array.nbytes for array in state.columns)
        with self._budget.holding(held + self._driven_bytes(table, asked)):
            cutoffs = None if past is None else past.lengths[:, None]
            bands_ = await self._bands(table, past, cutoffs, asked, state.tags, request)
            drive = self._drive(table, asked)
            async with drive:
                await drive.begin(state.tags, state.columns, count)
                async with aclosing(self._roll(drive, asked, request.begin, bands_)) as steps:
                    async for told in steps:
                        yield told

    def read_start(self, table: Table, columns: Sequence[tuple[str, Array]]) -> State:
        """Where an earlier call started, as its first message told.

        Raises:
            BadTensor: These are no columns of the table.
        """
        expected = table.dense_columns
        if [name for name, _ in columns] != [column.name for column in expected]:
            raise errors.BadTensor(
                f"start has {', '.join(name for name, _ in columns) or 'nothing'}; expected"
                f" {', '.join(column.name for column in expected)}",
                metadata={"field": "start"},
            )
        count = len(columns[0][1]) if columns and columns[0][1].ndim else 0
        checked = {spec.input for spec in table.model.signature.states if is_checked(spec)}
        for (name, array), column in zip(columns, expected, strict=True):
            if array.dtype != column.dtype or array.shape != (count, *column.shape):
                raise errors.BadTensor(
                    f"start of {name!r} is {array.dtype}{list(array.shape)}; expected {column.dtype}"
                    f"{[count, *column.shape]}",
                    metadata={"field": "start"},
                )
            if name in checked and np.isnan(array).any():
                raise errors.BadTensor(f"start of {name!r} has NaN; expected numbers", metadata={"field": "start"})
        arrays = [array for _, array in columns]
        return State(arrays, np.full(count, tag_of_arrays(arrays), np.uint64))

    def check_begun(self, table: Table, positions: Positions, origins: Positions, ids: Sequence[str]) -> None:
        """Checks that sessions have taken the steps that a forecast needs before it.

        Raises:
            Unsupported: One has not; names it.
        """
        window = steps_before(table.model.signature)
        short = np.flatnonzero(positions - origins < window)
        if len(short):
            taken = int(positions[short[0]] - origins[short[0]])
            raise errors.Unsupported(
                f"a forecast starts from the session's last output; session {errors.quoted(ids[short[0]])} took"
                f" {taken} steps: apply {window} at least first"
            )

    async def _walk(self, drive: Drive, past: Past, cutoffs: Ints, tags: Array) -> None:
        """Gives a drive its rows: forks of one walk through the past."""
        count, windows = cutoffs.shape
        base = Drive(self._engine, drive.table, self._limits, Priority.FORECAST, (), count)
        async with base:
            await base.begin(tags, count=count)
            starts = np.cumsum(past.lengths) - past.lengths
            await walk(base, drive, past.inputs, starts, np.full(count, windows), cutoffs.reshape(-1))

    async def _bands(
        self, table: Table, past: Past | None, cutoffs: Ints | None, asked: Asked, tags: Array, request: Request
    ) -> Bands | None:
        if not request.conformal or past is None or cutoffs is None:
            return None
        return await bands.calibrate(self._engine, table, self._limits, past, cutoffs, asked, request.quantiles, tags)

    def _asked(
        self, table: Table, request: Request, count: int, *, ahead: bool, known: Mapping[str, Known] | None = None
    ) -> Asked:
        """What is asked, as far as it goes with the model; `ahead` where future values begin before the first step.

        `known` is what is known beforehand where it does not come with the request.
        """
        signature = table.model.signature
        values = forecast_values(signature)
        if not values:
            raise errors.Unsupported(
                f"model {table.model.name!r} cannot forecast: its signature names no output that becomes the next"
                " input, no head, and no output of several steps"
            )
        each = max(value.steps or 1 for value in values)
        if request.horizon > each and not signature.feedback:
            raise errors.BadFrame(
                f"horizon is {request.horizon}; model {table.model.name!r} gives {each} at most, as its signature names"
                " no output that becomes the next input",
                metadata={"field": "horizon", "came": str(request.horizon), "expected": str(each)},
            )
        if request.conformal:
            bands.check_bytes(values, count, request.horizon, request.quantiles, self._budget.most)
        drawn = any(heads.is_drawn(value.head) for value in values)
        if request.samples and not drawn:
            raise errors.Unsupported(
                f"model {table.model.name!r} has no head that paths could be drawn from; bands can be had of its own"
                ' past errors: bands="conformal"'
            )
        if request.quantiles and not request.conformal:
            given = [value.head for value in values if value.head is not None and is_spread(value)]
            for head in given:
                for level in request.quantiles:
                    places_of(head, level)
            if not given and not drawn:
                raise errors.Unsupported(
                    f"model {table.model.name!r} has no head, so it says nothing of how sure it is; bands can be had of"
                    ' its own past errors: bands="conformal"'
                )
            if drawn and not given and not request.samples:
                raise bad("num_samples", "0, and quantiles are those of paths; expected 1 at least")
        self._check_answer(table, values, request, count, each)
        return Asked(
            horizon=request.horizon,
            series=np.arange(count, dtype=np.uint64) if request.series is None else request.series,
            known=self._known(signature, request, count, each, ahead=ahead) if known is None else known,
            samples=request.samples,
            seed=request.seed,
            quantiles=() if request.conformal else request.quantiles,
            return_samples=request.return_samples,
            stop=stop_of(values, request.stop),
        )

    def _known(self, signature: Signature, request: Request, count: int, each: int, *, ahead: bool) -> dict[str, Known]:
        """What goes in beside what is fed back, by input."""
        wanted = {}
        for spec in signature.inputs:
            places = known_places(signature, spec.name)
            if (places is None or places) and (request.horizon > each or (ahead and spec.ahead)):
                wanted[spec.name] = places
        unknown = sorted(set(request.future) - {spec.name for spec in signature.inputs if spec.name in wanted})
        unknown = [name for name in unknown if known_places(signature, name) == []] if unknown else []
        if unknown:
            raise errors.BadTensor(
                f"future has {errors.quoted(unknown[0])}, which is fed back; expected {', '.join(wanted) or 'nothing'}",
                metadata={"field": "future"},
            )
        found = {}
        for spec in signature.inputs:
            if spec.name not in wanted:
                continue
            places, array = wanted[spec.name], request.future.get(spec.name)
            if array is None:
                raise errors.BadTensor(
                    f"future has no {spec.name!r}; the model is not fed it, so it has to be known for"
                    f" {request.horizon} steps",
                    metadata={"field": "future", "input": spec.name},
                )
            step = step_shape(spec) if places is None else (*step_shape(spec)[:-1], len(places))
            if array.ndim > 1 and array.shape[1] < request.horizon:
                raise errors.BadTensor(
                    f"future of {spec.name!r} has {array.shape[1]} steps; expected {request.horizon}, the horizon",
                    metadata={"field": "future", "input": spec.name, "expected": str(request.horizon)},
                )
            expected = (count, request.horizon, *step)
            if array.dtype != numpy_dtype(spec.dtype) or array.shape != expected:
                raise errors.BadTensor(
                    f"future of {spec.name!r} is {array.dtype}{list(array.shape)}; expected {spec.dtype}"
                    f"{list(expected)}",
                    metadata={"field": "future", "input": spec.name},
                )
            gaps = np.argwhere(np.isnan(array)) if array.dtype.kind == "f" else np.empty((0, 0), np.int64)
            if len(gaps):
                series, row, *place = gaps[0].tolist()
                raise errors.BadTensor(
                    f"future of {spec.name!r} is nan in series {series}, step {row}{where(spec, place)}",
                    metadata={"field": "future", "series": str(series), "row": str(row)},
                )
            starts = np.arange(count) * request.horizon + bool(spec.ahead)
            found[spec.name] = Known(array.reshape(-1, *array.shape[2:]), starts)
        return found

    def _check_answer(self, table: Table, values: Sequence[Value], request: Request, count: int, each: int) -> None:
        numbers = sum(math.prod(value.shape) * value.dtype.itemsize for value in values)
        wide = 1 + len(request.quantiles) + (request.samples if request.return_samples else 0)
        check_answer(table.model, count * min(each, request.horizon) * numbers * wide, self._limits)

    def _driven_bytes(self, table: Table, asked: Asked) -> int:
        """What outputs and inputs of all rows hold while they run, about."""
        return self._rows(table, asked) * 2 * (table.input_bytes + table.output_bytes)

    def _rows(self, table: Table, asked: Asked) -> int:
        each = max(value.steps or 1 for value in forecast_values(table.model.signature))
        return len(asked.series) * (max(1, asked.samples) if asked.horizon > each else 1)

    def _drive(self, table: Table, asked: Asked) -> Drive:
        outputs = forecast_outputs(table.model.signature)
        return Drive(self._engine, table, self._limits, Priority.FORECAST, outputs, self._rows(table, asked))

    async def _roll(self, drive: Drive, asked: Asked, begin: int, around: Bands | None) -> AsyncGenerator[Told, None]:
        signature = drive.table.model.signature
        policy, names = Paths(signature, asked), [value.name for value in forecast_values(signature)]
        last = await drive.last()
        async with aclosing(roll(drive, policy, last, begin // policy.each)) as steps:
            async for told in steps:
                if told.offset + policy.each <= begin:
                    continue
                if around is not None:
                    told = around.around(told, names)
                yield told if told.offset >= begin else _from(told, begin)


def _from(told: Told, begin: int) -> Told:
    """The same from a later step on."""
    cut = begin - told.offset
    return Told(
        begin,
        [array[:, cut:] for array in told.points],
        {name: array[:, cut:] for name, array in told.quantiles.items()},
        [array[:, :, cut:] for array in told.samples],
    )
