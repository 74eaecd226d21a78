"""What a caller asks of a forecast, and the past and future that come with it: checked, shifted, named where wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from statestream.contract import errors
from statestream.contract.signature import Signature, TensorSpec, Value, known_places
from statestream_server.arrays import Array
from statestream_server.drivers.bands import Past
from statestream_server.drivers.paths import Stop


@dataclass(frozen=True, slots=True)
class StopAt:
    """When series end before the horizon: see `paths.Stop`; the value by name."""

    output: str
    place: int
    bound: float
    below: bool


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller asks, beside the source.

    Attributes:
        horizon: Steps wanted.
        samples: Paths drawn for each series; 0 for one of points.
        seed: What draws begin with.
        series: [N] uint64, the numbers of the series; None for 0, 1, ….
        quantiles: Those that are wanted, between 0 and 1.
        return_samples: Whether the paths are wanted.
        conformal: Whether quantiles are made of the past's errors.
        begin: The first step that is told.
        stop: When series end before the horizon.
        future: What is known beforehand, by input: [N, horizon, ...what nothing is fed to].
        past: Of sessions, for conformal quantiles: past inputs.
    """

    horizon: int
    samples: int = 0
    seed: int = 0
    series: Array | None = None
    quantiles: Sequence[float] = ()
    return_samples: bool = False
    conformal: bool = False
    begin: int = 0
    stop: StopAt | None = None
    future: Mapping[str, Array] = field(default_factory=dict)
    past: Past | None = None


@dataclass(frozen=True, slots=True)
class State:
    """Where a forecast starts that has no history: rows as they were read out.

    Attributes:
        columns: One array for every column of the table, [N, ...].
        tags: [N] what stands for them where work is noted.
    """

    columns: list[Array]
    tags: Array


def bad(name: str, what: str) -> errors.BadFrame:
    """An error about a field of the request."""
    return errors.BadFrame(f"{name} is {what}", metadata={"field": name})


def stop_of(values: Sequence[Value], stop: StopAt | None) -> Stop | None:
    """Where a stop is among the values.

    Raises:
        BadFrame: Nowhere.
    """
    if stop is None:
        return None
    names = [value.name for value in values]
    if stop.output not in names:
        raise bad("stop", f"of {errors.quoted(stop.output)}; what is forecast is {', '.join(names)}")
    value = values[names.index(stop.output)]
    if stop.place >= math.prod(value.shape):
        raise bad("stop", f"of number {stop.place}; {value.name!r} has {math.prod(value.shape)}")
    return Stop(names.index(stop.output), stop.place, stop.bound, stop.below)


def check_finite(specs: Sequence[TensorSpec], past: Past, what: str) -> None:
    """Checks that a past has no gaps.

    Raises:
        BadTensor: Names the first: series, row, input and place.
    """
    for spec, array in zip(specs, past.inputs, strict=True):
        if array.dtype.kind != "f" or not np.isnan(array.sum()):
            continue
        gaps = np.argwhere(np.isnan(array))
        if not len(gaps):
            continue
        step, *place = gaps[0].tolist()
        ends = np.cumsum(past.lengths)
        series = int(np.searchsorted(ends, step, side="right"))
        row = step - int(ends[series] - past.lengths[series])
        raise errors.BadTensor(
            f"{what} is nan in series {series}, row {row} of its {past.lengths[series]}{where(spec, place)} of input"
            f" {spec.name!r} ({len(gaps)} in all). A forecast takes no gaps: fill them, or leave those rows out",
            metadata={"field": what, "series": str(series), "row": str(row)},
        )


def where(spec: TensorSpec, place: Sequence[int]) -> str:
    """A place in a step, in words."""
    if not place:
        return ""
    if spec.columns and place[-1] < len(spec.columns):
        return f", column {spec.columns[place[-1]]!r}"
    return f", place {list(place)}"


def shifted(signature: Signature, past: Past, future: Mapping[str, Array] | None) -> Past:
    """A past whose inputs that are `ahead` stand by the step that they are for.

    Without a future the last step of each series is given up instead.
    """
    if not any(spec.ahead for spec in signature.inputs):
        return past
    ends = np.cumsum(past.lengths) - 1
    inputs = []
    for spec, array in zip(signature.inputs, past.inputs, strict=True):
        places = known_places(signature, spec.name)
        index = (...,) if places is None else (..., places)
        moved = np.array(array)
        if spec.ahead:
            moved[:-1][index] = array[1:][index]
            if future is not None:
                last = moved[ends]
                last[index] = future[spec.name][:, 0]
                moved[ends] = last
        inputs.append(moved)
    if future is not None:
        return Past(inputs, past.lengths)
    keep = np.ones(len(inputs[0]), np.bool_)
    keep[ends] = False
    return Past([array[keep] for array in inputs], past.lengths - 1)
