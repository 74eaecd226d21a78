"""Backtests: forecasts from many moments of a past, beside what came then. Pure, for both twins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from statestream.contract.errors import BadTensor, Unsupported
from statestream.contract.signature import errors_needed, forecast_values, step_shape, steps_before
from statestream.contract.tensors import Array, Ints
from statestream.dataframes import History, write_backtest
from statestream.forecasts import Told, Wish, cuts, forecast_call, row
from statestream.layout import Layout
from statestream.series import Past
from statestream.unary import StreamCall
from statestream.v1.server_pb2 import Limits


class Backtest(NamedTuple):
    """Forecasts of a past, and what came. Of one series that was given without an axis for series, without N.

    Attributes:
        cutoffs: [N, W] after how many steps of its series each forecast starts.
        y: [N, W, h, O] what came: of the input that is forecast. A dict by value where several are.
        forecast: What `forecast` gives of a history that ends there, with one axis more: [N, W, h, O], with quantiles
            [N, W, h, O, Q], with samples [N, W, S, h, O].
    """

    cutoffs: Ints
    y: Any
    forecast: Any


class Truth(NamedTuple):
    """Where in a history what is forecast of a value has come.

    Attributes:
        input: The input.
        places: Which of its features; none for all.
    """

    input: str
    places: tuple[int, ...]


def truths(layout: Layout) -> dict[str, Truth]:
    """By value where in a history it can be found later.

    Raises:
        Unsupported: The signature does not say which input is forecast.
    """
    signature = layout.signature
    found = {fed.output: Truth(fed.input, tuple(fed.places)) for fed in signature.feedback}
    if found:
        return found
    values = forecast_values(signature)
    alike = [value for value in values if len(layout.inputs) == 1 and value.shape == step_shape(layout.inputs[0])]
    if not values or len(alike) < len(values):
        raise Unsupported(
            f"model {layout.model.name!r} does not say which input it forecasts, so nothing can be compared; name it"
            " when you export it, as in feedback={'y': 'x'}"
        )
    return {value.name: Truth(layout.names[0], ()) for value in values}


def moments(layout: Layout, past: Past, wish: Wish, step: int, n_windows: int | None) -> Ints:
    """After how many steps of its series each forecast starts, [N, W]: the last has h steps behind it.

    Raises:
        BadTensor: A series is too short for so many; names it and what it takes.
    """
    before = steps_before(layout.signature)
    if wish.conformal:
        before += wish.h + errors_needed(wish.quantiles) - 1
    shortest = int(past.lengths.argmin())
    fit = max(0, (int(past.lengths[shortest]) - wish.h - before) // step + 1)
    windows = fit if n_windows is None else n_windows
    if not fit or windows > fit:
        windows = max(1, windows)
        name = shortest if past.names is None else past.names[shortest]
        takes = before + (windows - 1) * step + wish.h
        bands = ", past errors for its bands among them," if wish.conformal else ""
        whose = f"series {name!r}" if name != "" else "the table"
        raise BadTensor(
            f"{whose} has {past.lengths[shortest]} steps; {windows} windows of {wish.h} steps, {step} apart,"
            f" take {takes}: {before} before the first{bands} and {takes - before} in them. Bring more of the past,"
            " leave that series out, or ask for fewer windows or steps",
            metadata={"field": "history", "series": str(name), "expected": str(takes)},
        )
    cutoffs: Ints = past.lengths[:, None] - wish.h - step * np.arange(windows - 1, -1, -1)
    return cutoffs


def backtest_calls(
    layout: Layout, wish: Wish, version: int | str | None, past: Past, cutoffs: Ints, limits: Limits
) -> Iterator[StreamCall[Told]]:
    """The calls that forecast from every cutoff, as few as the server takes; their series in the order of `cutoffs`."""
    sizes = np.zeros(len(past.lengths), np.int64)
    for array in past.inputs.values():
        sizes += past.lengths * (array.nbytes // max(1, len(array)))
    most = limits.max_forecast_series or cutoffs.size
    if limits.max_driven_rows:
        most = min(most, max(1, limits.max_driven_rows // max(1, wish.num_samples) - 1))
    windows = min(cutoffs.shape[1], most)
    whole = windows == cutoffs.shape[1]
    for low, high in cuts(limits, wish, sizes, layout, windows + 1) if whole else _ones(limits, wish, sizes, layout):
        series = np.arange(low, high)
        part = past if high - low == len(sizes) else past.some(series)
        for first in range(0, cutoffs.shape[1], windows):
            mine = cutoffs[low:high, first : first + windows]
            yield forecast_call(layout, wish, version, past=part, series=series, cutoffs=mine)


def _ones(limits: Limits, wish: Wish, sizes: Array, layout: Layout) -> Iterator[tuple[int, int]]:
    """Each series by itself."""
    list(cuts(limits, wish, sizes, layout))
    return ((place, place + 1) for place in range(len(sizes)))


def outcome(layout: Layout, wish: Wish, past: Past, cutoffs: Ints, told: Told, table: History | None) -> Any:
    """What a caller has of it: a Backtest, or for a table one like it."""
    (count, windows), starts = cutoffs.shape, np.cumsum(past.lengths) - past.lengths
    places = (starts[:, None] + cutoffs)[..., None] + np.arange(wish.h)
    came: dict[str, Array] = {}
    for name, truth in truths(layout).items():
        values = past.inputs[truth.input]
        came[name] = (values[..., list(truth.places)] if truth.places else values)[places]
    if table is not None:
        return write_backtest(layout, table, wish, cutoffs, told, came)
    made = Told(
        *({name: array.reshape(count, windows, *array.shape[1:]) for name, array in kind.items()} for kind in told)
    )

    def one(arrays: Mapping[str, Array]) -> Any:
        found = {name: array[0] if past.alone else array for name, array in arrays.items()}
        return next(iter(found.values())) if len(found) == 1 else found

    return Backtest(cutoffs[0] if past.alone else cutoffs, one(came), row(wish, made, 0 if past.alone else None))
