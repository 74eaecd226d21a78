"""Forecasts that show themselves in a notebook: a fan chart for each of the first series, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import numpy as np

from statestream.backtests import truths
from statestream.contract.errors import Unsupported, shortened
from statestream.contract.tensors import Array
from statestream.forecasts import Told, Wish
from statestream.layout import Layout
from statestream.series import Past

MOST_PANELS: Final = 4
"""Charts that are drawn of many series, or of many values."""
_LEVELS: Final = (80, 95)
"""Of paths that are drawn, the central intervals in percent that are shown."""
_WIDTH, _HEIGHT, _LEFT, _TOP = 320, 130, 46, 18


@dataclass(frozen=True, slots=True)
class Panel:
    """One series of numbers.

    Attributes:
        title: What it is called.
        past: [T] the steps before, as many as are shown.
        middle: [h] the medians, or the points where there are none.
        bands: By interval in percent [h, 2] its bounds, the widest first.
    """

    title: str
    past: Array
    middle: Array
    bands: Mapping[float, Array]


@dataclass(frozen=True, slots=True)
class Fan:
    """What is shown of a forecast: panels, and how many there would be in all."""

    name: str
    h: int
    panels: Sequence[Panel]
    count: int


class Forecast(np.ndarray[Any, Any]):
    """The array that a forecast is, which shows itself as a fan chart; what is made of it is one like any other."""

    _fan: Fan | None = None

    def _repr_html_(self) -> str | None:
        return None if self._fan is None else drawn(self._fan)

    def __repr__(self) -> str:
        return repr(np.asarray(self))

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        """What is computed of it is a plain array, or number."""
        return array[()] if return_scalar else np.asarray(array)

    def __reduce__(self) -> Any:
        return np.asarray(self).__reduce__()  # Whoever reads it needs nothing of ours.


def shown(
    layout: Layout, wish: Wish, told: Told, past: Past | None, found: Any, ids: Sequence[str] | None = None
) -> Any:
    """The same arrays, as some that show themselves.

    Args:
        layout: The model's.
        wish: What was asked.
        told: What came of it.
        past: What came before, where that is known.
        found: What a caller gets of it: an array, or several by name.
        ids: [N] whose each series is, where that is known.
    """
    if isinstance(found, Mapping):
        return {name: _shown(layout, wish, told, past, name, array, ids) for name, array in found.items()}
    kind = told.samples if wish.samples else told.quantiles if wish.quantiles else told.points
    return _shown(layout, wish, told, past, next(iter(kind)), found, ids)


def _shown(
    layout: Layout, wish: Wish, told: Told, past: Past | None, name: str, array: Array, ids: Sequence[str] | None
) -> Any:
    forecast = array.view(Forecast)
    if name in told.points and told.points[name].dtype.kind in "fiu":
        forecast._fan = _fan(layout, wish, told, past, name, ids)
    return forecast


def _fan(layout: Layout, wish: Wish, told: Told, past: Past | None, name: str, ids: Sequence[str] | None) -> Fan:
    points = told.points[name]
    count, h = points.shape[:2]
    flat = points.reshape(count, h, -1)
    wide = flat.shape[2]
    before = _past(layout, past, name, wide, max(24, 2 * h))
    labels = next((list(spec.columns) for spec in layout.signature.outputs if spec.name == name), [])
    panels = list[Panel]()
    for series, place in ((series, place) for series in range(count) for place in range(wide)):
        if len(panels) == MOST_PANELS:
            break
        titles = []
        if count > 1:
            titles.append(f"series {series}" if ids is None else shortened(ids[series], 24))
        if wide > 1:
            titles.append(labels[place] if place < len(labels) else f"{name}[{place}]")
        middle, bands = np.array(flat[series, :, place], np.float64), dict[float, Array]()
        if name in told.quantiles:
            quantiles = told.quantiles[name].reshape(count, h, wide, -1)[series, :, place].astype(np.float64)
            middle, bands = _of_quantiles(wish.quantiles, quantiles, middle)
        elif name in told.samples:
            paths = told.samples[name].reshape(count, -1, h, wide)[series, :, :, place].astype(np.float64)
            asked = [0.5, *(side for level in _LEVELS for side in (0.5 - level / 200, 0.5 + level / 200))]
            middle, bands = _of_quantiles(asked, np.quantile(paths, asked, axis=0).T, middle)
        mine = before[series][:, place] if series < len(before) else np.zeros(0)
        panels.append(Panel(", ".join(titles), mine, middle, bands))
    return Fan(layout.model.name, h, panels, count * wide)


def _past(layout: Layout, past: Past | None, name: str, wide: int, steps: int) -> list[Array]:
    """The last steps of the first series, [T, O] each; none where nobody knows which input is forecast."""
    if past is None:
        return []
    try:
        truth = truths(layout).get(name)
    except Unsupported:
        return []
    if truth is None or truth.input not in past.inputs:
        return []
    found, ends = [], np.cumsum(past.lengths)
    for end, length in zip(ends[:MOST_PANELS].tolist(), past.lengths[:MOST_PANELS].tolist(), strict=True):
        values = past.inputs[truth.input][end - min(length, steps) : end]
        values = values[..., list(truth.places)] if truth.places else values
        values = values.reshape(len(values), -1).astype(np.float64)
        if values.shape[1] != wide:
            return []
        found.append(values)
    return found


def _of_quantiles(asked: Sequence[float], values: Array, points: Array) -> tuple[Array, dict[float, Array]]:
    """The median, and bands of those quantiles that lie as far from it on both sides; `values` [h, Q]."""
    places = {round(quantile, 9): place for place, quantile in enumerate(asked)}
    middle = values[:, places[0.5]] if 0.5 in places else points
    found = {
        100 * (1 - 2 * low): values[:, [place, places[round(1 - low, 9)]]]
        for low, place in places.items()
        if low < 0.5 and round(1 - low, 9) in places
    }
    return middle, dict(sorted(found.items(), reverse=True))


def drawn(fan: Fan) -> str:
    """A fan as HTML: a title, a chart for each panel, and how many there are beside those."""
    bands = " · ".join(f"{level:g} %" for level in fan.panels[0].bands) if fan.panels else ""
    title = f"{fan.name}, {fan.h} steps ahead" + (f" · {bands}" if bands else "")
    charts = "".join(_chart(panel) for panel in fan.panels)
    more = fan.count - len(fan.panels)
    rest = f"<div>… and {more:,} more</div>" if more > 0 else ""
    return f"<div><div>{escape(title)}</div>{charts}{rest}</div>"


def _chart(panel: Panel) -> str:
    numbers = np.concatenate([panel.past, panel.middle, *(band.ravel() for band in panel.bands.values())])
    numbers = numbers[np.isfinite(numbers)]
    low, high = (float(numbers.min()), float(numbers.max())) if len(numbers) else (0.0, 1.0)
    span = high - low
    if not math.isfinite(span) or span <= 0:
        span = abs(high) or 1.0
        low = high - span / 2
        span = min(span, 1e300)
    count = len(panel.past) + len(panel.middle)

    def x(step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 4) * step / max(1, count - 1)

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - 6) * (1 - (value - low) / span)

    def point(step: int, value: float) -> str:
        return f"{x(step):.1f},{y(value):.1f}"

    first = len(panel.past)
    shapes = []
    for band in panel.bands.values():
        # Also to the last step that is known, from where the fan opens.
        start = [(first - 1, panel.past[-1], panel.past[-1])] if first and np.isfinite(panel.past[-1]) else []
        steps = start + [(first + step, *row) for step, row in enumerate(band.tolist()) if np.isfinite(row).all()]
        edge = [point(step, lower) for step, lower, _ in steps]
        edge += [point(step, upper) for step, _, upper in reversed(steps)]
        shapes.append(f"<polygon points='{' '.join(edge)}' fill='#3b82c4' fill-opacity='.25'/>")
    shapes.append(_line(panel.past, 0, point, "currentColor"))
    join = panel.past[-1:]
    shapes.append(_line(np.concatenate([join, panel.middle]), first - len(join), point, "#3b82c4"))
    if first:
        edge_x = f"{x(first - 1):.1f}"
        shapes.append(
            f"<line x1='{edge_x}' x2='{edge_x}' y1='{_TOP}' y2='{_HEIGHT - 6}' stroke='currentColor'"
            " stroke-opacity='.4' stroke-dasharray='3 3'/>"
        )
    label = "text-anchor='end' font-size='10' fill='currentColor'"
    title = escape(panel.title or "forecast")
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{_HEIGHT}' role='img' aria-label='{title}'>"
        f"<text x='{_LEFT}' y='12' font-size='11' fill='currentColor'>{escape(panel.title)}</text>"
        f"<text x='{_LEFT - 4}' y='{_TOP + 8}' {label}>{low + span:.4g}</text>"
        f"<text x='{_LEFT - 4}' y='{_HEIGHT - 6}' {label}>{low:.4g}</text>"
        f"{''.join(shapes)}</svg>"
    )


def _line(values: Array, first: int, point: Any, colour: str) -> str:
    """A line through values, with gaps where they are no numbers."""
    path, begun = [], False
    for step, value in enumerate(values.tolist(), first):
        if math.isfinite(value):
            path.append(f"{'L' if begun else 'M'}{point(step, value)}")
        begun = math.isfinite(value)
    return f"<path d='{' '.join(path)}' fill='none' stroke='{colour}' stroke-width='1.4'/>" if path else ""
