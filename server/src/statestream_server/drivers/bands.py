"""Conformal bands: how far a model's forecasts were off on the past of the same series, and what that promises.

Split conformal prediction (Vovk, Gammerman and Shafer, 2005; step by step, as Stankevičiūtė, Alaa and van der Schaar,
2021): of n past errors of k steps, the next one of k steps lies at or below the ceil(q (n + 1))-th smallest with a
probability of at least q, as far as errors are exchangeable. No distribution is assumed and none is invented.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from statestream.contract import errors
from statestream.contract.signature import (
    Signature,
    Value,
    errors_needed,
    forecast_outputs,
    forecast_values,
    known_places,
    steps_before,
)
from statestream_server.arrays import Array, Ints
from statestream_server.drivers.drive import Drive, aside, roll
from statestream_server.drivers.paths import Asked, Known, Paths, Told
from statestream_server.drivers.walks import walk
from statestream_server.engine.engine import Engine
from statestream_server.engine.table import Table
from statestream_server.engine.work import Priority
from statestream_server.settings import Limits

ERRORS = 256
"""The most past errors of a series that are looked at, the newest."""
_ROWS = 8192
"""Rows that run at a time, about."""
_NUMBERS = 1 << 20
"""Errors that are looked at at a time, about."""


class Past(NamedTuple):
    """Past inputs of some series, one series after the other.

    Attributes:
        inputs: One array for every input, [S, ...one step]; of those that are `ahead` shifted already.
        lengths: [N] the steps of each.
    """

    inputs: list[Array]
    lengths: Ints


class Bands:
    """What is added to points: for every value that is fed back, [N, h, ...one step, Q]."""

    def __init__(self, offsets: Mapping[str, Array]) -> None:
        """Of values by name."""
        self._offsets = offsets

    def around(self, told: Told, names: Sequence[str]) -> Told:
        """The same with quantiles; `names` are those of the points."""
        found = {}
        for name, point in zip(names, told.points, strict=True):
            if name in self._offsets:
                mine = self._offsets[name][:, told.offset : told.offset + point.shape[1]]
                found[name] = (point[..., None] + mine).astype(point.dtype if point.dtype.kind == "f" else np.float64)
        return told._replace(quantiles=found)


def check(signature: Signature, cutoffs: Ints, horizon: int, quantiles: Sequence[float]) -> None:
    """Checks that bands can be had at all, for forecasts that start after `cutoffs` [N, W] steps of their series.

    Raises:
        Unsupported: Nothing is fed back, so no past input says what a forecast should have been.
        BadTensor: A series is too short for what is asked; names it, its steps and those that it takes.
    """
    if not signature.feedback:
        raise errors.Unsupported(
            "conformal bands need to know which input a forecast should have been; the signature names no feedback"
        )
    needed = errors_needed(quantiles)
    least = steps_before(signature) + horizon + needed - 1
    short = np.argwhere(cutoffs < least)
    if len(short):
        series, window = short[0].tolist()
        raise errors.BadTensor(
            f"series {series} has {cutoffs[series, window]} past steps; conformal bands of these quantiles take"
            f" {needed} past errors of {horizon} steps, which are in {least}. Bring more of the past, ask"
            " for fewer steps, or for quantiles nearer to 0.5",
            metadata={"field": "history", "series": str(series), "expected": str(least)},
        )


def check_bytes(values: Sequence[Value], count: int, horizon: int, quantiles: Sequence[float], most: int) -> None:
    """Checks that the bands of so many forecasts are no more than the server keeps.

    Raises:
        BadFrame: They are.
    """
    nbytes = count * horizon * len(quantiles) * 8 * sum(math.prod(value.shape) for value in values)
    if nbytes > most:
        raise errors.BadFrame(
            f"bands of {count} forecasts, {horizon} steps and {len(quantiles)} quantiles have {nbytes} bytes; expected"
            f" at most {most}. Ask for fewer series, steps or quantiles at a time",
            metadata={"field": "bands", "came": str(nbytes), "expected": str(most)},
        )


async def calibrate(
    engine: Engine,
    table: Table,
    limits: Limits,
    past: Past,
    cutoffs: Ints,
    asked: Asked,
    quantiles: Sequence[float],
    tags: Array,
) -> Bands:
    """Forecasts `asked.horizon` steps from each of the newest moments of the past, and compares.

    Args:
        engine: What runs it.
        table: The model's.
        limits: How many rows may be driven.
        past: What `check` let through.
        cutoffs: [N, W] after how many steps of their series the forecasts start that bands are wanted for.
        asked: Those forecasts.
        quantiles: Which.
        tags: [N] what stands for the series where work is noted.

    Returns:
        Bands of N W forecasts.

    Raises:
        TooManySessions: With the rows under way these would be too many.
        NonFiniteState: The past left the finite numbers.
    """
    window, most = steps_before(table.model.signature), max(ERRORS, min(_ROWS, _NUMBERS // asked.horizon))
    whose, parts = list[int](), list[_Part]()
    for series, mine in enumerate(cutoffs):
        # What one series takes may be too much at a time, but never what one cutoff takes.
        waiting = [mine]
        while waiting:
            part = _Part(waiting.pop(), asked.horizon, window)
            if len(part.begins) > most:
                middle = len(part.cutoffs) // 2
                waiting += [part.cutoffs[middle:], part.cutoffs[:middle]]
            else:
                whose.append(series)
                parts.append(part)
    starts = np.cumsum(past.lengths) - past.lengths
    block = max(1, most // max(len(part.begins) for part in parts))
    found: dict[str, list[Array]] = {}
    for low in range(0, len(parts), block):
        chosen = slice(low, min(low + block, len(parts)))
        series_ = np.asarray(whose[chosen])
        calibration = _Calibration(table, past, starts[series_], parts[chosen])
        for name, values in (await calibration.run(engine, limits, asked, quantiles, tags[series_])).items():
            found.setdefault(name, []).append(values)
    return Bands({name: np.concatenate(values) for name, values in found.items()})


class _Part:
    """Cutoffs of a series, and the moments from which errors are taken for them."""

    def __init__(self, cutoffs: Ints, horizon: int, window: int) -> None:
        self.cutoffs = cutoffs
        last = (cutoffs - horizon).tolist()
        # For each the newest whose truth was known there.
        self.begins = np.unique(np.concatenate([np.arange(max(window, at - ERRORS + 1), at + 1) for at in last]))
        self.horizon = horizon

    def errors(self, off: Array) -> list[Array]:
        """Of the errors at all moments [m, h, ...] those for each cutoff."""
        ends = np.searchsorted(self.begins, self.cutoffs - self.horizon, side="right").tolist()
        return [off[max(0, end - ERRORS) : end] for end in ends]


class _Calibration:
    """Some series."""

    def __init__(self, table: Table, past: Past, starts: Ints, parts: Sequence[_Part]) -> None:
        self._table = table
        self._signature = table.model.signature
        self._past = past
        self._starts = starts
        self._parts = parts

    async def run(
        self, engine: Engine, limits: Limits, asked: Asked, quantiles: Sequence[float], tags: Array
    ) -> dict[str, Array]:
        """By value what is added to points, [n W, h, ...one step, Q]."""
        series, counts = len(self._parts), np.asarray([len(part.begins) for part in self._parts])
        total, begins = int(counts.sum()), np.concatenate([part.begins for part in self._parts])
        outputs = forecast_outputs(self._signature)
        base = Drive(engine, self._table, limits, Priority.FORECAST, outputs, series)
        forks = Drive(engine, self._table, limits, Priority.FORECAST, outputs, total)
        async with forks:
            async with base:
                await base.begin(tags, count=series)
                await walk(base, forks, self._past.inputs, self._starts, counts, begins)
            at = np.repeat(self._starts, counts) + begins
            mine = replace(
                asked,
                known=self._known(at),
                series=np.zeros(total, np.uint64),
                stop=None,
            )
            told: list[Told] = []
            last = await forks.last()
            async with aclosing(roll(forks, Paths(self._signature, mine), last)) as steps:
                async for one in steps:
                    told.append(one)
        return await aside(total, self._offsets, counts, at, told, quantiles)

    def _known(self, at: Ints) -> dict[str, Known]:
        """What of the inputs nothing is fed to, behind the moments at `at`."""
        found = {}
        for spec, array in zip(self._signature.inputs, self._past.inputs, strict=True):
            places = known_places(self._signature, spec.name)
            if places is None or places:
                found[spec.name] = Known(array if places is None else array[..., places], at)
        return found

    def _offsets(self, counts: Ints, at: Ints, told: list[Told], quantiles: Sequence[float]) -> dict[str, Array]:
        values = [value.name for value in forecast_values(self._signature)]
        inputs = [spec.name for spec in self._signature.inputs]
        found: dict[str, Array] = {}
        for feedback in self._signature.feedback:
            forecast = np.concatenate([one.points[values.index(feedback.output)] for one in told], 1)
            truth = self._past.inputs[inputs.index(feedback.input)]
            if feedback.places:
                truth = truth[..., list(feedback.places)]
            off = truth[at[:, None] + np.arange(forecast.shape[1])].astype(np.float64) - forecast
            cut = zip(self._parts, np.split(off, np.cumsum(counts)[:-1]), strict=True)
            found[feedback.output] = np.stack([_at(one, quantiles) for part, mine in cut for one in part.errors(mine)])
        return found


def _at(off: Array, quantiles: Sequence[float]) -> Array:
    """Of errors [n, h, ...] those at the quantiles, [h, ..., Q]: the next one outwards, so that it holds."""
    ordered, count = np.sort(off, 0), len(off)
    ranks = [math.ceil(q * (count + 1) - 1e-9) if q >= 0.5 else math.floor(q * (count + 1) + 1e-9) for q in quantiles]
    return np.stack([ordered[min(max(rank, 1), count) - 1] for rank in ranks], -1)
