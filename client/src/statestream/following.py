"""Times that come after those of a series, as far as libraries of tables know."""

from __future__ import annotations

import calendar
import warnings
from collections.abc import Callable
from datetime import date
from typing import Any

from statestream.contract.errors import BadTensor


def following(name: Any, find: Callable[[Any, int], Any], came: Any, horizon: int) -> Any:
    """The times after those that `came` of a series, as `after` or `after_index` find them.

    Raises:
        BadTensor: They cannot be told of those that came.
    """
    try:
        return find(came, horizon)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadTensor(
            f"the times after those of series {name!r} cannot be told: {str(error)[:120]}; expected two rows at least,"
            f" and times or numbers as 'ds' or index. Give the history as an array for a forecast without times",
            metadata={"field": "ds", "series": str(name)},
        ) from error


def after(times: Any, horizon: int) -> Any:
    """The next times after those of a native column, one step apart as the last two are."""
    if type(times).__module__.startswith("pandas"):
        return after_index(times, horizon)
    past = times.to_list()
    last, before = past[-1], past[-2] if len(past) > 1 else None
    step: Any = last - before if before is not None else 1
    if isinstance(last, date) and before is not None and 27 < step.days < 32:
        end = all(map(_is_month_end, past[-3:]))
        if end or len({day.day for day in past[-3:]}) == 1:
            return [_monthsafter(last, n, end=end) for n in range(1, horizon + 1)]
    return [last + step * n for n in range(1, horizon + 1)]


def _is_month_end(day: date) -> bool:
    return day.day == calendar.monthrange(day.year, day.month)[1]


def _monthsafter(day: date, months: int, *, end: bool) -> date:
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    last = calendar.monthrange(year, month + 1)[1]
    return day.replace(year=year, month=month + 1, day=last if end else min(day.day, last))


def after_index(times: Any, horizon: int) -> Any:
    """The same of a pandas column or index, whose frequencies pandas knows."""
    import pandas

    index = pandas.Index(times)
    if len(index) == 0:
        return pandas.RangeIndex(horizon)
    if isinstance(index, pandas.DatetimeIndex):
        freq = index.freq
        if freq is None and len(index) > 2:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that pandas will return another type, which date_range takes too
                freq = pandas.infer_freq(index)
        if freq is not None:
            return pandas.date_range(index[-1], periods=horizon + 1, freq=freq)[1:]
    step = index[-1] - index[-2] if len(index) > 1 else 1
    return pandas.Index([index[-1] + step * n for n in range(1, horizon + 1)], name=index.name)
