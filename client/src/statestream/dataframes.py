"""Forecasts of tables: history in, the same kind of table out; pandas, polars and what else narwhals reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from statestream import following, series
from statestream.contract.errors import BadTensor, Unsupported
from statestream.contract.signature import Value, forecast_values, is_spread, known_places
from statestream.contract.tensors import Array, Ints
from statestream.forecasts import Told, Wish
from statestream.layout import Layout
from statestream.series import Past
from statestream.tables import frame_of, order, read
from statestream.wanted import Wanted, listed

ID, TIME, TARGET, CUTOFF = "unique_id", "ds", "y", "cutoff"
"""The columns of a table of many series: whose, when, what a single feature may be called, where a forecast began."""


@dataclass(frozen=True, slots=True)
class History:
    """A table of the past.

    Attributes:
        frame: The table, as narwhals has it.
        rows: By series, the numbers of its rows in the table, in the order of time.
        past: Its series.
    """

    frame: Any
    rows: list[Any]
    past: Past

    @property
    def names(self) -> list[Any]:
        """The series' names."""
        return list(self.past.names or ())


def read_history(layout: Layout, table: Any) -> History | None:
    """The histories in a table; None where it is no table.

    It has a column for each feature (for a single one, y will do), and may have unique_id (whose row it is) and ds
    (when). Without ds the rows are in the order of time.

    Raises:
        BadTensor: Columns are missing or unknown, a time comes twice, a number is missing; names them.
    """
    frame = frame_of(_labelled(table))
    if frame is None:
        return None
    if not len(frame):
        raise layout.wanted[0].bad("the table has no rows; expected the past, a row a step")
    columns = _columns(layout, [str(name) for name in frame.columns if str(name) not in (ID, TIME)])
    first = layout.wanted[0]
    names, codes = _codes(first, frame)
    order_ = _in_time(first, frame, names, codes)
    ends = np.cumsum(np.bincount(codes, minlength=len(names)))
    inputs = {}
    for wanted, mine in zip(layout.wanted, columns, strict=True):
        values = read(mine, frame.select(list(mine.columns)).to_native() if mine.columns else _features(frame))
        inputs[wanted.name] = values[order_]
    lengths = np.diff(ends, prepend=0)
    rows = [order_[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
    return History(frame, rows, Past(inputs, lengths, False, names))


def read_future(layout: Layout, history: History, table: Any, h: int) -> dict[str, Array]:
    """What is known beforehand in a table of the future, by input [N, h, …]; series are found by unique_id.

    Raises:
        BadTensor: A column is missing, or a series has not so many rows, or they are not after its past; names it.
    """
    frame = frame_of(_labelled(table))
    if frame is None:
        return series.future(layout, table, len(history.rows), h)
    first = layout.wanted[0]
    names, codes = _codes(first, frame)
    order_ = _in_time(first, frame, names, codes)
    counts = np.bincount(codes, minlength=len(names))
    ends = np.cumsum(counts)
    chosen = []
    for name, past in zip(history.names, history.rows, strict=True):
        place = names.index(name) if name in names else -1
        rows = order_[ends[place] - counts[place] : ends[place]] if place >= 0 else order_[:0]
        if len(rows) < h:
            whose = f"series {name!r}" if ID in history.frame.columns else "the series"
            raise BadTensor(
                f"future has {len(rows)} rows of {whose}; expected {h}, as many as are forecast",
                metadata={"field": "future", "expected": str(h)},
            )
        if TIME in frame.columns and TIME in history.frame.columns:
            last, begins = history.frame[TIME][int(past[-1])], frame[TIME][int(rows[0])]
            if not begins > last:
                raise BadTensor(
                    f"future of series {name!r} begins at {TIME} {begins}; its past ends at {last}",
                    metadata={"field": "future"},
                )
        chosen.append(rows[:h])
    places = np.stack(chosen)
    found: dict[str, Array] = {}
    for wanted in layout.wanted:
        known = known_places(layout.signature, wanted.name)
        if known == []:
            continue
        columns = wanted.names if known is None else [wanted.names[place] for place in known]
        missing = [name for name in columns if name not in frame.columns]
        if missing:
            raise BadTensor(
                f"future has no column {missing[0]!r}, which is known beforehand; it has {listed(frame.columns)}",
                metadata={"field": "future"},
            )
        mine = Wanted(
            f"future of {wanted.name}", wanted.field, wanted.dtype, tuple(columns), wanted.width and len(columns)
        )
        found[wanted.name] = read(mine, frame.select(columns).to_native())[places]
    return found


def write_forecast(layout: Layout, history: History, wish: Wish, told: Told) -> Any:
    """The table of forecasts, of the library that the history came from: a column each for points, quantiles, paths."""
    import narwhals.stable.v2 as narwhals

    frame, h = history.frame, wish.h
    long = ID in frame.columns or TIME in frame.columns
    columns = _told_columns(layout, wish, told, len(history.rows), long)
    tables = []
    native = frame.to_native()
    usual = cache(lambda: following.usual_of(frame[TIME].to_native()))
    for number, (name, rows) in enumerate(zip(history.names, history.rows, strict=True)):
        data: dict[str, Any] = {}
        if ID in frame.columns:
            data[ID] = [name] * h
        if TIME in frame.columns:
            after = partial(following.after, usual=usual)
            data[TIME] = following.following(name, after, frame[TIME][rows.tolist()].to_native(), h)
        data |= {column: values[number] for column, values in columns.items()}
        table = narwhals.from_dict(data, backend=frame.implementation)
        if not long and hasattr(native, "index"):
            index = following.following(name, following.after_index, native.index, h)
            table = narwhals.from_native(table.to_native().set_axis(index, axis=0))
        tables.append(table)
    joined = narwhals.concat(tables)
    if ID in frame.columns and frame[ID].dtype == narwhals.Categorical:
        joined = joined.with_columns(joined[ID].cast(narwhals.Categorical))
    whole = joined.to_native()
    return whole.reset_index(drop=True) if long and hasattr(whole, "reset_index") else whole


def write_backtest(
    layout: Layout, history: History, wish: Wish, cutoffs: Ints, told: Told, came: Mapping[str, Array]
) -> Any:
    """The table of a backtest, of the library that the history came from, with Nixtla's columns.

    A row for each step of each window: unique_id where the history has it, ds, cutoff (the last time before), y (or, of
    several numbers, the names of each) and what `write_forecast` has. Without ds a step's time is its number.

    Args:
        layout: The model's.
        history: The past.
        wish: What was asked.
        cutoffs: [N, W] after how many steps of its series each forecast starts.
        told: The forecasts, of N W series.
        came: By value what came, [N, W, h, ...].
    """
    import narwhals.stable.v2 as narwhals

    frame, (count, windows), h = history.frame, cutoffs.shape, wish.h
    steps = cutoffs[..., None] + np.arange(h)
    rows = np.concatenate([rows[mine.reshape(-1)] for rows, mine in zip(history.rows, steps, strict=True)])
    last = np.concatenate([rows[mine - 1] for rows, mine in zip(history.rows, cutoffs, strict=True)]).repeat(h)
    values = {value.name: value for value in forecast_values(layout.signature)}
    found: dict[str, Array] = {}
    for name, array in came.items():
        names = _value_names(layout, values[name])
        names = [TARGET] if len(came) == len(names) == 1 else names
        flat = array.reshape(count * windows, h, -1)
        found |= {label: flat[..., place] for place, label in enumerate(names)}
    forecast = _told_columns(layout, wish, told, count * windows, long=True)
    taken = {ID, TIME, CUTOFF, *found} & set(forecast)
    if taken:
        raise Unsupported(
            f"the table would have two columns {min(taken)!r}, as the model's own name is one that tables of backtests"
            " have; give its history as an array"
        )
    data: dict[str, Any] = {}
    if ID in frame.columns:
        data[ID] = frame[ID][rows.tolist()]
    when = _times(frame)
    data[TIME] = np.asarray(steps).reshape(-1) if when is None else when[rows.tolist()]
    data[CUTOFF] = (cutoffs - 1).reshape(-1).repeat(h) if when is None else when[last.tolist()]
    data |= {name: array.reshape(-1) for name, array in (found | forecast).items()}
    made = [
        narwhals.new_series(name, column, backend=frame.implementation)
        if isinstance(column, np.ndarray)
        else column.alias(name)
        for name, column in data.items()
    ]
    whole = narwhals.concat([_bare(one.to_frame()) for one in made], how="horizontal")
    return whole.to_native()


def _bare(table: Any) -> Any:
    """The same without the labels of its rows, which pandas would join by."""
    import narwhals.stable.v2 as narwhals

    native = table.to_native()
    return narwhals.from_native(native.reset_index(drop=True)) if hasattr(native, "reset_index") else table


def _times(frame: Any) -> Any:
    """The column of times, or what a table of pandas has as its index; None where rows are in the order of time."""
    import narwhals.stable.v2 as narwhals

    if TIME in frame.columns:
        return frame[TIME]
    index = getattr(frame.to_native(), "index", None)
    if index is None or type(index).__name__ == "RangeIndex":
        return None
    return narwhals.from_native(index.to_series(), series_only=True)


def _told_columns(layout: Layout, wish: Wish, told: Told, count: int, long: bool) -> dict[str, Array]:
    """By name the columns of what was told of so many series, [N, h]: points, quantiles and paths of every value.

    In a long table they are called as the model; where it has a point and quantiles of it, those go together.
    """
    h, columns = wish.h, dict[str, Array]()
    values = forecast_values(layout.signature)
    fed = {feedback.output for feedback in layout.signature.feedback}
    spread = [value for value in values if is_spread(value) and value.name not in fed]
    points = [value for value in values if value not in spread]
    around: dict[str, str] = {}
    if long and len(points) == len(spread) == 1 and points[0].shape == spread[0].shape:
        values, around = points, {points[0].name: spread[0].name}
    for value in values:
        names = _value_names(layout, value)
        if long:
            alone = len(values) == len(names) == 1
            names = [layout.model.name if alone else f"{layout.model.name}-{name}" for name in names]
        flat = told.points[value.name].reshape(count, h, -1)
        columns |= {name: flat[..., place] for place, name in enumerate(names)}
        quantiles = around.get(value.name, value.name)
        if quantiles not in told.quantiles:
            quantiles = value.name
        if quantiles in told.quantiles:
            wide = told.quantiles[quantiles].reshape(count, h, len(names), -1)
            for place, name in enumerate(names):
                columns |= {f"{name}{label}": wide[..., place, q] for q, label in enumerate(wish.labels)}
        if value.name in told.samples:
            paths = told.samples[value.name].reshape(count, -1, h, len(names))
            for place, name in enumerate(names):
                columns |= {f"{name}-sample-{path}": paths[:, path, :, place] for path in range(paths.shape[1])}
    return columns


def _value_names(layout: Layout, value: Value) -> list[str]:
    """What the numbers of a value are called: as the output's columns, or those of the input that it is fed to."""
    count = math.prod(value.shape)
    names: list[str] = []
    if value.head is None:
        spec = next(spec for spec in layout.signature.outputs if spec.name == value.name)
        names = list(spec.columns) or ([value.name] if count == 1 else [])
    for feedback in layout.signature.feedback:
        if not names and feedback.output == value.name:
            known = list(layout.inputs[layout.names.index(feedback.input)].columns)
            names = [known[place] for place in feedback.places] if known and feedback.places else known
    if len(names) != count:
        names = [value.name] if count == 1 else [f"{value.name}_{n}" for n in range(count)]
    return names


def _labelled(table: Any) -> Any:
    """The same with whose and when as columns, where a table of many series has them as the labels of its rows.

    Raises:
        BadTensor: Rows have several labels, and not these.
    """
    names = [*getattr(getattr(table, "index", None), "names", ())]
    if not names or not (hasattr(table, "reset_index") and hasattr(table, "columns")):
        return table
    if len(names) > 1 and ID not in names:
        raise BadTensor(
            f"the table's index has the levels {listed(names)}; expected columns, {ID!r} (whose row it is) and {TIME!r}"
            f" (when), or levels of these names: table.rename_axis([{ID!r}, {TIME!r}])"
        )
    if ID in table.columns and names == [None] and type(table.index).__name__ == "DatetimeIndex":
        table, names = table.rename_axis(TIME), [TIME]
    inside = [name for name in names if name in (ID, TIME) and name not in table.columns]
    return table.reset_index(level=inside) if inside and (ID in inside or ID in table.columns) else table


def _features(frame: Any) -> Any:
    return frame.drop([ID, TIME], strict=False).to_native()


def _columns(layout: Layout, features: list[str]) -> list[Wanted]:
    """What each input is read for in a table that has these columns beside whose and when."""
    wanted = layout.wanted
    if len(wanted) == 1:
        (only,) = wanted
        if len(only.names) == 1 and features == [TARGET] and only.names != [TARGET]:
            only = Wanted(only.name, only.field, only.dtype, (TARGET,) if only.columns else (), only.width)
        order(only, features)
        return [only]
    fed = {feedback.input for feedback in layout.signature.feedback}
    every = [name for one in wanted for name in one.names]
    found = []
    for one in wanted:
        names = one.names
        if TARGET in features and TARGET not in every and one.name in fed and len(names) == 1:
            names = names if names[0] in features else [TARGET]
        found.append(Wanted(one.name, one.field, one.dtype, tuple(names), one.width))
    expected = [name for one in found for name in one.columns]
    missing = [name for name in expected if name not in features]
    unknown = [name for name in features if name not in expected]
    if missing or unknown:
        raise wanted[0].bad(
            f"the table has the columns {listed(features)}; model {layout.model.name!r} has inputs with the columns"
            f" {listed(expected)} (missing: {listed(missing)}; unknown: {listed(unknown)})"
        )
    return found


def _codes(wanted: Wanted, frame: Any) -> tuple[list[Any], Any]:
    """The names of the series, as they first come, and of every row the number of its series."""
    if ID not in frame.columns:
        return [""], np.zeros(len(frame), np.int64)
    _whole(wanted, frame, ID)
    numbers: dict[Any, int] = {}
    try:
        codes = [numbers.setdefault(name, len(numbers)) for name in frame[ID].to_list()]
    except TypeError as error:  # Of a list, for instance, which no dict takes.
        raise wanted.bad(
            f"column {ID!r} has dtype {frame[ID].dtype}; expected texts or numbers, one for each series"
        ) from error
    return list(numbers), np.asarray(codes, np.int64)


def _in_time(wanted: Wanted, frame: Any, names: list[Any], codes: Any) -> Any:
    """The numbers of the rows, series by series, each in the order of time."""
    if TIME not in frame.columns:
        return np.argsort(codes, kind="stable")
    _whole(wanted, frame, TIME)
    kind = frame[TIME].dtype
    if str(kind) in ("String", "Boolean", "Categorical", "Binary"):
        raise wanted.bad(
            f"column {TIME!r} has dtype {kind}; expected times or numbers, which have an order and a next one."
            " Convert it, as in pandas.to_datetime(…)"
        )
    try:
        when = frame[TIME].rank("dense").to_numpy()
    except Exception as error:  # What a library says of values that it cannot compare is its own affair.
        kinds = sorted({type(one).__name__ for one in frame[TIME].to_list()})
        raise wanted.bad(
            f"column {TIME!r} has values without an order, of type {listed(kinds)}; expected times or numbers, of one"
            " type. Convert it, as in pandas.to_datetime(…)"
        ) from error
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
