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
from statestream.contract.signature import Signature, forecast_outputs, forecast_values, known_places, steps_before
from statestream_server.arrays import Array, Ints
from statestream_server.drivers.drive import Drive, roll
from statestream_server.drivers.paths import Asked, Paths, Told
from statestream_server.engine.engine import Engine
from statestream_server.engine.table import Table
from statestream_server.engine.work import Priority
from statestream_server.settings import Limits

ERRORS = 256
"""The most past errors of a series that are looked at, the newest."""
_ROWS = 8192
"""Rows that run at a time, about."""


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


def needed(quantiles: Sequence[float]) -> int:
    """How many past errors it takes until some of them are at these quantiles."""
    return max(math.ceil(max(q, 1 - q) / min(q, 1 - q) - 1e-9) for q in quantiles)


def check(signature: Signature, past: Past, horizon: int, quantiles: Sequence[float]) -> None:
    """Checks that bands can be had at all.

    Raises:
        Unsupported: Nothing is fed back, so no past input says what a forecast should have been.
        BadTensor: A series is too short for what is asked; names it, its steps and those that it takes.
    """
    if not signature.feedback:
        raise errors.Unsupported(
            "conformal bands need to know which input a forecast should have been; the signature names no feedback"
        )
    least = steps_before(signature) + horizon + needed(quantiles) - 1
    short = np.flatnonzero(past.lengths < least)
    if len(short):
        raise errors.BadTensor(
            f"series {short[0]} has {past.lengths[short[0]]} past steps; conformal bands of these quantiles take"
            f" {needed(quantiles)} past errors of {horizon} steps, which are in {least}. Bring more of the past, ask"
            " for fewer steps, or for quantiles nearer to 0.5",
            metadata={"field": "history", "series": str(short[0]), "expected": str(least)},
        )


async def calibrate(
    engine: Engine, table: Table, limits: Limits, past: Past, asked: Asked, quantiles: Sequence[float], tags: Array
) -> Bands:
    """Forecasts `asked.horizon` steps from each of the newest moments of the past, and compares.

    Args:
        engine: What runs it.
        table: The model's.
        limits: How many rows may be driven.
        past: What `check` let through.
        asked: The forecast that bands are wanted for.
        quantiles: Which.
        tags: [N] what stands for the series where work is noted.

    Raises:
        TooManySessions: With the rows under way these would be too many.
        NonFiniteState: The past left the finite numbers.
    """
    window, horizon = steps_before(table.model.signature), asked.horizon
    counts = np.minimum(past.lengths - horizon - window + 1, ERRORS)
    ends = np.cumsum(past.lengths)
    block = max(1, _ROWS // int(counts.max()))
    found: dict[str, list[Array]] = {}
    for low in range(0, len(counts), block):
        chosen = slice(low, min(low + block, len(counts)))
        part = _Calibration(table, past, ends[chosen] - past.lengths[chosen], past.lengths[chosen], counts[chosen])
        for name, values in (await part.run(engine, limits, asked, quantiles, tags[chosen])).items():
            found.setdefault(name, []).append(values)
    return Bands({name: np.concatenate(values) for name, values in found.items()})


class _Calibration:
    """Some series."""

    def __init__(self, table: Table, past: Past, starts: Ints, lengths: Ints, counts: Ints) -> None:
        self._table = table
        self._signature = table.model.signature
        self._past = past
        self._starts = starts
        self._lengths = lengths
        self._counts = counts

    async def run(
        self, engine: Engine, limits: Limits, asked: Asked, quantiles: Sequence[float], tags: Array
    ) -> dict[str, Array]:
        """By value what is added to points, [n, h, ...one step, Q]."""
        series, total = len(self._counts), int(self._counts.sum())
        outputs = forecast_outputs(self._signature)
        names = [spec.name for spec in self._signature.inputs]
        # Of series i the forks begin after first[i], first[i] + 1, … steps.
        first = self._lengths - asked.horizon - self._counts + 1
        whose: list[Ints] = []
        begins: list[Ints] = []
        base = Drive(engine, self._table, limits, Priority.FORECAST, outputs, series)
        forks = Drive(engine, self._table, limits, Priority.FORECAST, outputs, total)
        async with base, forks:
            await base.begin(tags, count=series)
            await base.warm(first, [array[_ranges(self._starts, first)] for array in self._past.inputs])
            left = np.arange(series)
            for number in range(int(self._counts.max())):
                await forks.add(base.rows)
                whose.append(left)
                begins.append(self._starts[left] + first[left] + number)
                on = np.flatnonzero(self._counts[left] > number + 1)
                if not len(on):
                    break
                if len(on) < len(left):
                    await base.follow(on)
                left = left[on]
                at = self._starts[left] + first[left] + number
                await base.step([array[at][:, None] for array in self._past.inputs])
            at = np.concatenate(begins)
            places = at[:, None] + np.arange(asked.horizon)
            known = {name: array[places] for name, array in zip(names, self._past.inputs, strict=True)}
            mine = replace(
                asked,
                known=self._known(known),
                series=np.zeros(total, np.uint64),
                stop=None,
            )
            told: list[Told] = []
            last = await forks.read(len(self._signature.states))
            async with aclosing(roll(forks, Paths(self._signature, mine), last)) as steps:
                async for one in steps:
                    told.append(one)
        return self._offsets(np.concatenate(whose), known, told, quantiles)

    def _known(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """What of the inputs nothing is fed to."""
        found = {}
        for name, array in inputs.items():
            places = known_places(self._signature, name)
            if places is None or places:
                found[name] = array if places is None else array[..., places]
        return found

    def _offsets(
        self, whose: Ints, actual: Mapping[str, Array], told: list[Told], quantiles: Sequence[float]
    ) -> dict[str, Array]:
        values = forecast_values(self._signature)
        order = np.argsort(whose, kind="stable")
        cuts = np.cumsum(self._counts)[:-1]
        found: dict[str, Array] = {}
        for feedback in self._signature.feedback:
            place = [value.name for value in values].index(feedback.output)
            forecast = np.concatenate([one.points[place] for one in told], 1).astype(np.float64)
            truth = actual[feedback.input].astype(np.float64)
            if feedback.places:
                truth = truth[..., list(feedback.places)]
            off = (truth - forecast)[order]
            found[feedback.output] = np.stack([_at(errors_, quantiles) for errors_ in np.split(off, cuts)])
        return found


def _at(off: Array, quantiles: Sequence[float]) -> Array:
    """Of errors [n, h, ...] those at the quantiles, [h, ..., Q]: the next one outwards, so that it holds."""
    ordered, count = np.sort(off, 0), len(off)
    ranks = [math.ceil(q * (count + 1) - 1e-9) if q >= 0.5 else math.floor(q * (count + 1) + 1e-9) for q in quantiles]
    return np.stack([ordered[min(max(rank, 1), count) - 1] for rank in ranks], -1)


def _ranges(starts: Ints, lengths: Ints) -> Ints:
    """The places start … start + length - 1 of each, one after the other."""
    ends = np.cumsum(lengths)
    found: Ints = np.repeat(starts - (ends - lengths), lengths) + np.arange(int(ends[-1]))
    return found
