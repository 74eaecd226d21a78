"""Forecasts of pandas DataFrames: history in, the same kind of table out. pandas stays optional."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from statestream.errors import BadTensor
from statestream.layout import Layout, column_names
from statestream.wire import Array

LONG = ("unique_id", "ds")
"""The columns that make a table one of many series: whose, and when."""


def is_frame(value: object) -> bool:
    """Whether it is a DataFrame, without importing pandas for it."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


@dataclass(frozen=True, slots=True)
class Series:
    """Histories of one length: the rows of the table they come from, and the inputs [N, T, F]."""

    names: list[Any]
    tables: list[Any]
    inputs: dict[str, Array]


def read_frame(layout: Layout, frame: Any) -> list[Series]:
    """The histories in a table, those of equal length together.

    The table has the columns unique_id, ds and one for each feature (y, if there is only one), or
    only the features' columns, one row a step.

    Raises:
        BadTensor: Columns are missing; names them.
    """
    if len(layout.inputs) != 1:
        raise BadTensor(f"model {layout.model.name!r} has inputs {list(layout.names)}; a table serves only one input")
    long = all(column in frame.columns for column in LONG)
    features = _features(layout, frame, long)
    groups = frame.groupby(LONG[0], sort=False) if long else [("", frame)]
    by_length: dict[int, tuple[list[Any], list[Any]]] = {}
    for name, table in groups:
        ordered = table.sort_values(LONG[1]) if long else table
        names, tables = by_length.setdefault(len(ordered), ([], []))
        names.append(name)
        tables.append(ordered)
    found = []
    for names, tables in by_length.values():
        values = np.stack([table[features].to_numpy(dtype=np.float64) for table in tables])
        shape = layout.shapes[0]
        inputs, _ = layout.history(values if shape else values[..., 0])
        found.append(Series(names, tables, inputs))
    return found


def write_frame(layout: Layout, series: list[Series], forecasts: list[Array], horizon: int) -> Any:
    """The table of the forecasts, in the order of `series`: [N, h, …] each."""
    import pandas

    long = all(column in series[0].tables[0].columns for column in LONG)
    spec = layout.signature.outputs[0]
    tables = []
    for group, forecast in zip(series, forecasts, strict=True):
        for name, past, values in zip(group.names, group.tables, forecast, strict=True):
            values = values.reshape(horizon, -1)
            columns = column_names(spec)
            if len(columns) != values.shape[1]:
                columns = [f"{spec.name}_{n}" for n in range(values.shape[1])]
            if long and len(columns) == 1 and "y" in past.columns:
                columns = ["y"]
            if long:
                table = pandas.DataFrame(values, columns=columns)
                table.insert(0, LONG[1], _after(past[LONG[1]], horizon))
                table.insert(0, LONG[0], name)
            else:
                table = pandas.DataFrame(values, columns=columns, index=_after(past.index, horizon))
            tables.append(table)
    return pandas.concat(tables, ignore_index=long)


def _features(layout: Layout, frame: Any, long: bool) -> list[str]:
    names = column_names(layout.inputs[0])
    if all(name in frame.columns for name in names):
        return names
    others = [str(column) for column in frame.columns if not (long and column in LONG)]
    if len(others) == len(names) == 1:
        return others
    raise BadTensor(
        f"the table has the columns {list(frame.columns)}; expected {', '.join(names)}"
        + (f" beside {' and '.join(LONG)}" if long else f", or {', '.join(LONG)} and y"),
        metadata={"field": layout.names[0]},
    )


def _after(times: Any, horizon: int) -> Any:
    """The next times after those of a column or an index, one step apart as the last two are."""
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
