"""The policy of forecasts: of every series one path of points, or as many paths as are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from statestream.contract import errors
from statestream.contract.signature import (
    Head,
    HeadKind,
    Signature,
    Value,
    forecast_outputs,
    forecast_values,
    is_spread,
    known_places,
    numpy_dtype,
    step_shape,
)
from statestream_server.arrays import Array, Ints
from statestream_server.drivers import heads
from statestream_server.drivers.drive import Move
from statestream_server.drivers.randoms import Draws


class Told(NamedTuple):
    """Some steps of a forecast, for every value of `forecast_values` in its order.

    Attributes:
        offset: The first of them.
        points: [N, K, ...one step] each; of a series that has stopped NaN, or 0 in whole numbers.
        quantiles: [N, K, ...one step, Q] of those values that have some, by name.
        samples: [N, P, K, ...one step] of every value, or nothing.
    """

    offset: int
    points: list[Array]
    quantiles: dict[str, Array]
    samples: list[Array]


class Stop(NamedTuple):
    """When a series ends: with the step of which one number crosses a bound.

    Attributes:
        value: Its place among the values.
        place: Which number of it, in C order.
        bound: The bound.
        below: Whether it ends at the bound or below; else at it or above.
    """

    value: int
    place: int
    bound: float
    below: bool


class Known(NamedTuple):
    """What is known beforehand of an input, where it lies.

    Attributes:
        values: [S, ...what nothing is fed to], the steps of all series.
        starts: [N] the place of each series' entry 0, which goes in with what is fed back after step 0.
    """

    values: Array
    starts: Ints

    def of(self, series: Ints, offset: int, count: int) -> Array:
        """The entries of some series from one on, [n, count, ...]."""
        found: Array = self.values[(self.starts[series] + offset)[:, None] + np.arange(count)]
        return found


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a forecast, beside where it starts.

    Attributes:
        horizon: Steps.
        known: What is known beforehand, by input.
        samples: Paths of each series; 0 for one of points.
        seed: What draws begin with.
        series: [N] uint64, the numbers of the series.
        quantiles: Those that are wanted.
        return_samples: Whether the paths are wanted.
        stop: When series end before the horizon.
    """

    horizon: int
    series: Array
    known: Mapping[str, Known] = field(default_factory=dict)
    samples: int = 0
    seed: int = 0
    quantiles: Sequence[float] = ()
    return_samples: bool = False
    stop: Stop | None = None


class Paths:
    """Feeds outputs back, or what is drawn of them."""

    def __init__(self, signature: Signature, asked: Asked) -> None:
        """The policy of one forecast."""
        self._asked = asked
        self._signature = signature
        self._values = forecast_values(signature)
        self._names = forecast_outputs(signature)
        self._paths = max(1, asked.samples)
        self._alive: Ints = np.arange(len(asked.series))
        self._known = {spec.name: known_places(signature, spec.name) for spec in signature.inputs}
        self.each = max([value.steps or 1 for value in self._values], default=1)
        """Steps of a move."""

    def next(self, step: int, outputs: Sequence[Array]) -> Move[Told]:
        """The next steps, as many as one run gives; `outputs` are those of `forecast_outputs`."""
        asked, offset = self._asked, step * self.each
        count = min(self.each, asked.horizon - offset)
        paths = [self._paths_of(number, value, outputs, offset) for number, value in enumerate(self._values)]
        given = {value.name: self._given(value, outputs) for value in self._values if is_spread(value)}
        told, alive = self._told(offset, count, paths, given)
        if offset + count >= asked.horizon or not len(alive):
            return Move(told)
        rows = np.flatnonzero(np.isin(self._alive, alive))
        fed = {value.name: path[rows] for value, path in zip(self._values, paths, strict=True)}
        parents = None
        if not step and self._paths > 1:
            parents = np.repeat(rows, self._paths)
        elif len(rows) < len(self._alive):
            parents = (rows[:, None] * self._paths + np.arange(self._paths)).reshape(-1)
        self._alive = alive
        return Move(told, self._inputs(fed, offset), parents)

    def _paths_of(self, number: int, value: Value, outputs: Sequence[Array], offset: int) -> Array:
        """A value's paths: [n, P, K, ...one step] of the series that go on."""
        mine = self._arrays(value, outputs)
        head = value.head
        if head is None:
            return mine[0]
        given = heads.parameters(head, mine)
        if not self._asked.samples or not heads.is_drawn(head):
            made = heads.point(head, given)
        else:
            steps = []
            for k in range(self.each):
                draws = Draws(self._asked.seed, self._asked.series[self._alive], self._paths, offset + k, number)
                steps.append(heads.sample(head, {name: array[:, :, k] for name, array in given.items()}, draws))
            made = np.stack(steps, 2)
        return made.astype(value.dtype)

    def _arrays(self, value: Value, outputs: Sequence[Array]) -> list[Array]:
        """The outputs of a value, [n, P, K, ...] each; of the first step, which all paths have in common, views."""
        series, found = len(self._alive), []
        for name in value.outputs:
            array = outputs[self._names.index(name)]
            array = np.moveaxis(array, 1 + value.axis, 1) if value.steps else array[:, None]
            array = array.reshape(series, -1, *array.shape[1:])
            found.append(np.broadcast_to(array, (series, self._paths, *array.shape[2:])))
        return found

    def _given(self, value: Value, outputs: Sequence[Array]) -> Array:
        """The wanted quantiles of a head that has them, as they are: [n, K, ...one step, Q]."""
        assert value.head is not None
        places = [places_of(value.head, wanted) for wanted in self._asked.quantiles]
        path = self._arrays(value, outputs)[0][..., places]
        return path[:, 0] if path.shape[1] == 1 else path.mean(1, dtype=np.float64).astype(path.dtype)

    def _told(self, offset: int, count: int, paths: list[Array], given: Mapping[str, Array]) -> tuple[Told, Ints]:
        """What is told of the next steps, and the series that go on behind them."""
        points = [self._point(value, path[:, :, :count]) for value, path in zip(self._values, paths, strict=True)]
        alive = self._alive
        over: Array | None = None
        stop = self._asked.stop
        if stop is not None:
            number = points[stop.value].reshape(len(alive), count, -1)[..., stop.place]
            crossed = number <= stop.bound if stop.below else number >= stop.bound
            alive = alive[~crossed.any(1)]
            # The step that crosses is the last that is told.
            over = np.asarray(np.cumsum(crossed, 1) - crossed > 0)
        quantiles: dict[str, Array] = {}
        for value, path in zip(self._values, paths, strict=True):
            if not self._asked.quantiles:
                continue
            if value.name in given:
                quantiles[value.name] = self._spread(given[value.name][:, :count], over)
            elif self._asked.samples:
                quantiles[value.name] = self._spread(self._quantiles(path[:, :, :count]), over)
        samples: list[Array] = []
        if self._asked.return_samples:
            samples = [np.moveaxis(self._spread(np.moveaxis(path[:, :, :count], 1, 2), over), 2, 1) for path in paths]
        return Told(offset, [self._spread(point, over) for point in points], quantiles, samples), alive

    def _spread(self, found: Array, over: Array | None) -> Array:
        """What was found of the series that go on, [n, K, ...], as that of all."""
        count = len(self._asked.series)
        if over is None and len(self._alive) == count:
            return found
        whole = np.full((count, *found.shape[1:]), np.nan if found.dtype.kind == "f" else 0, found.dtype)
        mine = np.array(found)
        if over is not None:
            mine[over] = np.nan if found.dtype.kind == "f" else 0
        whole[self._alive] = mine
        return whole

    def _point(self, value: Value, path: Array) -> Array:
        """[n, K, ...one step] of [n, P, K, ...one step]."""
        if path.shape[1] == 1:
            return path[:, 0]
        head = value.head
        if head is not None and head.kind == HeadKind.HEAD_KIND_CATEGORICAL and not head.values:
            spec = next(spec for spec in self._signature.outputs if spec.name == value.outputs[0])
            counted = [(path == number).sum(1) for number in range(step_shape(spec)[-1])]
            return np.asarray(np.argmax(counted, 0), path.dtype)
        return np.asarray(path.mean(1, dtype=np.float64).astype(path.dtype))

    def _quantiles(self, path: Array) -> Array:
        """The wanted quantiles of paths, [n, K, ...one step, Q]."""
        found = np.quantile(path.astype(np.float64, copy=False), list(self._asked.quantiles), axis=1)
        return np.moveaxis(found, 0, -1).astype(path.dtype if path.dtype.kind == "f" else np.float64)

    def _inputs(self, fed: Mapping[str, Array], offset: int) -> list[Array]:
        """What the rows get next, [R, K, ...one step] for every input."""
        made = []
        series = len(self._alive)
        for spec in self._signature.inputs:
            shape, dtype, known = step_shape(spec), numpy_dtype(spec.dtype), self._known[spec.name]
            array = np.empty((series, self._paths, self.each, *shape), dtype)
            if known is None or known:
                values = self._asked.known[spec.name].of(self._alive, offset, self.each)
                array[... if known is None else (..., known)] = values[:, None]
            for feedback in self._signature.feedback:
                if feedback.input == spec.name:
                    value: Array = fed[feedback.output]
                    if dtype.kind != "f" and value.dtype.kind == "f":
                        value = np.rint(value)
                    array[(..., list(feedback.places)) if feedback.places else ...] = value
            made.append(array.reshape(series * self._paths, self.each, *shape))
        return made


def places_of(head: Head, wanted: float) -> int:
    """Where a head of quantiles has a level.

    Raises:
        BadFrame: It has not that one; names those that it has.
    """
    for place, level in enumerate(head.quantiles):
        if abs(level - wanted) < 1e-9:
            return place
    raise errors.BadFrame(
        f"quantile {wanted:g} is none of those that the model gives: {', '.join(f'{q:g}' for q in head.quantiles)}; ask"
        " for these, or for conformal bands",
        metadata={"field": "quantiles", "came": f"{wanted:g}"},
    )
