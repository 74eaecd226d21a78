"""Times that come after those of a series, as far as libraries of tables know."""

from __future__ import annotations

import calendar
import warnings
from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from itertools import count, islice, pairwise
from typing import Any, Final

from statestream.contract.errors import BadTensor

_LOOKED_AT: Final = 1000
"""Times of a series, its last ones, from which is told how it goes on where pandas cannot."""


def following(name: Any, find: Callable[[Any, int], Any], came: Any, horizon: int) -> Any:
    """The times after those that `came` of a series, as `after` or `after_index` find them.

    Args:
        name: The series'; "" for that of a table of one.
        find: `after` or `after_index`.
        came: Its times, a native column or index.
        horizon: How many are asked for.

    Raises:
        BadTensor: They cannot be told of those that came.
    """
    try:
        return find(came, horizon)
    except (TypeError, ValueError, OverflowError) as error:
        whose = f"series {name!r}" if name != "" else "the table"
        raise BadTensor(
            f"the times after those of {whose} cannot be told: {_why(list(came), error)}. Give the history as an array"
            " for a forecast without times",
            metadata={"field": "ds", "series": str(name)},
        ) from error


def _why(came: list[Any], error: Exception) -> str:
    """What came, and what would do; what a library says of it tells neither."""
    last = str(came[-1]).replace("\n", " ")[:40]
    if isinstance(error, OverflowError) or "OutOfBounds" in type(error).__name__:
        return f"it ends at {last}, and its dtype holds none so far behind it; expected earlier times"
    if len(came) == 1 and isinstance(came[0], date | timedelta):
        return (
            f"it has one row, at {last}, and how far the next one is away shows only between two; expected two rows at"
            " least, or whole numbers"
        )
    return (
        f"it ends at {last}, of type {type(came[-1]).__name__}, which has no next one; expected times or numbers as"
        " 'ds' or index"
    )


def after(times: Any, horizon: int, usual: Callable[[], Any] = lambda: None) -> Any:
    """The next times after those of a native column, as they went: by a frequency of pandas, months, or one difference.

    Times may be left out: what most of them are apart counts, not what the last two are.

    Args:
        times: Those that came, in their order.
        horizon: How many are asked for.
        usual: The frequency of all series of the table together (`usual_of`), for one that has gaps.
    """
    if type(times).__module__.startswith("pandas"):
        return after_index(times, horizon, usual)
    return _next(times.to_list(), horizon)


def after_index(times: Any, horizon: int, usual: Callable[[], Any] = lambda: None) -> Any:
    """The same of a pandas column or index, whose frequencies pandas knows."""
    import pandas

    index = pandas.Index(times)
    if len(index) == 0:
        return pandas.RangeIndex(horizon)
    if isinstance(index, pandas.DatetimeIndex):
        freq = index.freq or _inferred(index)
        if freq is None and _goes_by(index, other := usual()):
            freq = other
        if freq is not None:
            return pandas.date_range(index[-1], periods=horizon + 1, freq=freq)[1:]
    return pandas.Index(_next(index[-_LOOKED_AT:].to_list(), horizon), name=index.name)


def usual_of(times: Any) -> Any:
    """The frequency of the times of many series together; None where there is none, or pandas is not there to tell."""
    if not type(times).__module__.startswith("pandas"):
        return None
    import pandas

    index = pandas.Index(times).unique().sort_values()
    return _inferred(index) if isinstance(index, pandas.DatetimeIndex) else None


def _inferred(index: Any) -> Any:
    import pandas

    if len(index) < 3:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that pandas will return another type, which date_range takes too
        return pandas.infer_freq(index)


def _goes_by(index: Any, freq: Any) -> bool:
    """Whether times are of a frequency, with fewer of them left out than are there."""
    import pandas

    if freq is None:
        return False
    every = pandas.date_range(index[0], index[-1], freq=freq)
    return len(every) < 2 * len(index) and bool(index.isin(every).all())


def _next(past: list[Any], horizon: int) -> list[Any]:
    last = past[-1]
    months = _months(past)
    if months:
        end = all(map(_is_month_end, past))
        return [_months_after(last, months * n, end=end) for n in range(1, horizon + 1)]
    apart = [after - before for before, after in pairwise(past)]
    step: Any = apart[-1] if apart else 1
    if apart and (most := Counter(apart).most_common(1)[0])[1] * 2 > len(apart):
        step = most[0]
    if step == timedelta(days=1) and len(past) > 5 and all(day.weekday() < 5 for day in past):
        return _weekdays_after(last, horizon)
    return [last + step * n for n in range(1, horizon + 1)]


def _months(past: list[Any]) -> int:
    """How many months apart times are that all are of one day of the month, or of its last one; else 0."""
    if len(past) < 2 or not isinstance(past[-1], date):
        return 0
    if len({day.day for day in past}) > 1 and not all(map(_is_month_end, past)):
        return 0
    numbers = [day.year * 12 + day.month for day in past]
    between = Counter(after - before for before, after in pairwise(numbers))
    months, times = between.most_common(1)[0]
    return int(months) if times * 2 > len(past) - 1 else numbers[-1] - numbers[-2]


def _weekdays_after(last: date, horizon: int) -> list[date]:
    days = (last + timedelta(days=1) * n for n in count(1))
    return list(islice((day for day in days if day.weekday() < 5), horizon))


def _is_month_end(day: date) -> bool:
    return day.day == calendar.monthrange(day.year, day.month)[1]


def _months_after(day: date, months: int, *, end: bool) -> date:
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    last = calendar.monthrange(year, month + 1)[1]
    return day.replace(year=year, month=month + 1, day=last if end else min(day.day, last))
