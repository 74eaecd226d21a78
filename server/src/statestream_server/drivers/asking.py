"""What a caller asks of a forecast, and the past and future that come with it: checked, shifted, named where wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from statestream.contract import errors
from statestream.contract.observations import is_filled
from statestream.contract.signature import Signature, TensorSpec, Value, known_places, steps_before
from statestream_server.arrays import Array, Ints
from statestream_server.drivers.bands import Past
from statestream_server.drivers.paths import Known, Stop


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
        cutoffs: [N, W] after how many steps of each series of a history forecasts start; None behind the last.
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
    cutoffs: Ints | None = None


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
    """Checks that a past has no gaps, but for those that the server fills.

    Raises:
        BadTensor: Names the first: series, row, input and place.
    """
    for spec, array in zip(specs, past.inputs, strict=True):
        if array.dtype.kind != "f" or is_filled(spec) or not np.isnan(array.sum()):
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


def of_cutoffs(signature: Signature, past: Past, request: Request, cutoffs: Ints) -> tuple[Request, dict[str, Known]]:
    """A request for forecasts from moments of its histories, each as if it were of a history that ends there.

    Returns:
        The request, of a series for each of them, and what is known beforehand there.

    Raises:
        BadFrame: Cutoffs do not ascend, or something came that goes with none.
        BadTensor: One is where too few steps come before it, or behind it; names the series and what there is.
    """
    if request.future:
        raise bad("future", "sent beside cutoffs; what is known beforehand is taken from the history there")
    _check_cutoffs(cutoffs, past.lengths, steps_before(signature), request.horizon)
    numbers = np.arange(len(cutoffs), dtype=np.uint64) if request.series is None else request.series
    request = replace(request, series=np.repeat(numbers, cutoffs.shape[1]))
    starts = ((np.cumsum(past.lengths) - past.lengths)[:, None] + cutoffs).reshape(-1)
    known = {}
    for spec, array in zip(signature.inputs, past.inputs, strict=True):
        places = known_places(signature, spec.name)
        if places is None or places:
            # Lies where it came: for every forecast by itself it could be far more than what was sent.
            known[spec.name] = Known(array if places is None else array[..., places], starts + bool(spec.ahead))
    return request, known


def _check_cutoffs(cutoffs: Ints, lengths: Ints, before: int, horizon: int) -> None:
    """Checks cutoffs [N, W] of series of `lengths` [N]: `before` steps come before each, `horizon` behind it."""
    wrong = np.argwhere(np.diff(cutoffs, axis=1) <= 0)
    if len(wrong):
        series, place = wrong[0].tolist()
        raise bad("cutoffs", f"{cutoffs[series, place + 1]} behind {cutoffs[series, place]}; expected them to ascend")
    wrong = np.argwhere((cutoffs < before) | (cutoffs + horizon > lengths[:, None]))
    if len(wrong):
        series, place = wrong[0].tolist()
        raise errors.BadTensor(
            f"series {series} has {lengths[series]} steps, which are no {before} before its cutoff at"
            f" {cutoffs[series, place]} and {horizon} behind it. Bring more of the past, or ask for fewer steps or"
            " cutoffs",
            metadata={"field": "history", "series": str(series), "expected": str(before + horizon)},
        )
