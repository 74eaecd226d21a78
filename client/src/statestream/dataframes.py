"""Forecasts of tables: history in, the same kind of table out; pandas, polars and what else narwhals reads."""

from __future__ import annotations

import calendar
import warnings
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np

from statestream.contract.errors import BadTensor
from statestream.contract.tensors import Array
from statestream.layout import Layout
from statestream.tables import frame_of, order, read
from statestream.wanted import Wanted, listed

ID, TIME, TARGET = "unique_id", "ds", "y"
"""The columns of a table of many series: whose, when, and what a single feature may be called."""


@dataclass(frozen=True, slots=True)
class Group:
    """Histories of one length.

    Attributes:
        names: The series' names, in the order of the inputs.
        rows: By series, the numbers of its rows in the table, in the order of time.
        inputs: [N, T, F].
    """

    names: list[Any]
    rows: list[Any]
    inputs: dict[str, Array]


@dataclass(frozen=True, slots=True)
class History:
    """A table of the past.

    Attributes:
        frame: The table, as narwhals has it.
        target: Whether its only feature is called y.
        groups: Its series, those of equal length together.
    """

    frame: Any
    target: bool
    groups: list[Group]


def read_history(layout: Layout, table: Any) -> History | None:
    """The histories in a table; None where it is no table.

    It has a column for each feature (for a single one, y will do), and may have unique_id (whose row it is) and ds
    (when). Without ds the rows are in the order of time.

    Raises:
        BadTensor: Columns are missing or unknown, a time comes twice; names them.
    """
    frame = frame_of(table)
    if frame is None:
        return None
    wanted = layout.wanted[0]
    if not len(frame):
        raise wanted.bad("the table has no rows; expected the past, a row a step")
    if len(layout.inputs) != 1:
        raise BadTensor(
            f"model {layout.model.name!r} has inputs {listed(layout.names)}; a table serves only one input: give a dict"
            " with a table for each",
            metadata={"field": wanted.field},
        )
    features = [name for name in frame.columns if str(name) not in (ID, TIME)]
    target = len(wanted.names) == 1 and [str(name) for name in features] == [TARGET] and wanted.names != [TARGET]
    if target:
        wanted = Wanted(wanted.name, wanted.field, wanted.dtype, (TARGET,) if wanted.columns else (), wanted.width)
    order(wanted, features)
    values = read(wanted, frame.drop([ID, TIME], strict=False).to_native())
    names, codes = _codes(wanted, frame)
    rows = _in_time(wanted, frame, names, codes)
    ends = np.cumsum(np.bincount(codes, minlength=len(names)))
    by_length: dict[int, list[int]] = {}
    for number, (low, high) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        by_length.setdefault(int(high - low), []).append(number)
    groups = []
    for length, numbers in by_length.items():
        series = [rows[ends[number] - length : ends[number]] for number in numbers]
        inputs, _ = layout.history(values[np.stack(series)])
        groups.append(Group([names[number] for number in numbers], series, inputs))
    return History(frame, target, groups)


def write_forecast(layout: Layout, history: History, forecasts: list[Array], horizon: int) -> Any:
    """The table of the forecasts, [N, h, …] for each group, of the library that the history came from."""
    import narwhals.stable.v2 as narwhals

    frame, spec = history.frame, layout.signature.outputs[0]
    long = ID in frame.columns or TIME in frame.columns
    columns = Wanted.of(spec).names
    if long and len(columns) == 1 and history.target:
        columns = [TARGET]
    tables = []
    native = frame.to_native()
    for group, forecast in zip(history.groups, forecasts, strict=True):
        for name, rows, values in zip(group.names, group.rows, forecast, strict=True):
            flat = values.reshape(horizon, -1)
            if len(columns) != flat.shape[1]:
                columns = [f"{spec.name}_{n}" for n in range(flat.shape[1])]
            data: dict[str, Any] = {}
            if ID in frame.columns:
                data[ID] = [name] * horizon
            if TIME in frame.columns:
                data[TIME] = _after(frame[TIME][rows.tolist()].to_native(), horizon)
            data |= {column: flat[:, n] for n, column in enumerate(columns)}
            table = narwhals.from_dict(data, backend=frame.implementation)
            if not long and hasattr(native, "index"):
                table = narwhals.from_native(table.to_native().set_axis(_after_index(native.index, horizon), axis=0))
            tables.append(table)
    whole = narwhals.concat(tables).to_native()
    return whole.reset_index(drop=True) if long and hasattr(whole, "reset_index") else whole


def _codes(wanted: Wanted, frame: Any) -> tuple[list[Any], Any]:
    """The names of the series, as they first come, and of every row the number of its series."""
    if ID not in frame.columns:
        return [""], np.zeros(len(frame), np.int64)
    _whole(wanted, frame, ID)
    numbers: dict[Any, int] = {}
    codes = [numbers.setdefault(name, len(numbers)) for name in frame[ID].to_list()]
    return list(numbers), np.asarray(codes, np.int64)


def _in_time(wanted: Wanted, frame: Any, names: list[Any], codes: Any) -> Any:
    """The numbers of the rows, series by series, each in the order of time."""
    if TIME not in frame.columns:
        return np.argsort(codes, kind="stable")
    _whole(wanted, frame, TIME)
    when = frame[TIME].rank("dense").to_numpy()
    rows = np.lexsort((when, codes))
    twice = np.flatnonzero((np.diff(when[rows]) == 0) & (np.diff(codes[rows]) == 0))
    if len(twice):
        row = int(rows[twice[0]])
        whose = f"series {names[codes[row]]!r}" if ID in frame.columns else f"the table (without {ID}: one series)"
        raise wanted.bad(f"{whose} has {TIME} {frame[TIME][row]} more than once; expected a row for each time")
    return rows


def _whole(wanted: Wanted, frame: Any, column: str) -> None:
    gaps = frame[column].is_null().to_numpy()
    if gaps.any():
        raise wanted.bad(f"column {column!r} has no value at row {int(np.flatnonzero(gaps)[0])}; expected one a row")


def _after(times: Any, horizon: int) -> Any:
    """The next times after those of a native column, one step apart as the last two are."""
    if type(times).__module__.startswith("pandas"):
        return _after_index(times, horizon)
    past = times.to_list()
    last, before = past[-1], past[-2] if len(past) > 1 else None
    step: Any = last - before if before is not None else 1
    if isinstance(last, date) and before is not None and 27 < step.days < 32:
        end = all(map(_is_month_end, past[-3:]))
        if end or len({day.day for day in past[-3:]}) == 1:
            return [_months_after(last, n, end=end) for n in range(1, horizon + 1)]
    return [last + step * n for n in range(1, horizon + 1)]


def _is_month_end(day: date) -> bool:
    return day.day == calendar.monthrange(day.year, day.month)[1]


def _months_after(day: date, months: int, *, end: bool) -> date:
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    last = calendar.monthrange(year, month + 1)[1]
    return day.replace(year=year, month=month + 1, day=last if end else min(day.day, last))


def _after_index(times: Any, horizon: int) -> Any:
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
