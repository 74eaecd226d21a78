"""What callers give as values: by name whatever the order and the library, and nothing dropped without a word."""

from __future__ import annotations

import datetime
import decimal
import sqlite3
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestream import dataframes, starts
from statestream.errors import BadTensor
from statestream.forecasts import Told, Wish
from statestream.layout import Layout
from statestream.series import history
from statestream.signature import Signature
from statestream.v1 import model_pb2
from statestream.views import read_model
from tests.client.fake_server import Fake
from tests.client.twins import Connect, Twin
from tests.client.world import FEATURES

WEATHER = ("temperature", "pressure", "wind")


def layout(*columns: str, width: int = 3, time: bool = True, dtype: str = "float32") -> Layout:
    signature = Signature(format=1)
    spec = signature.inputs.add(name="x", dtype=dtype, shape=[-1, -1, width] if time else [-1, width], batch_axis=0)
    if time:
        spec.time_axis = 1
    spec.columns.extend(columns)
    signature.outputs.add(name="y", dtype="float32", shape=[-1, 1], batch_axis=0)
    signature.states.add(input="h", output="h_out", dtype="float32", shape=[-1, 3], batch_axis=0)
    signature.feedback.add(output="y", input="x", places=[0])
    kind = model_pb2.ModelKind.MODEL_KIND_SESSION
    return Layout(read_model(model_pb2.Model(name="m", version=1, kind=kind, signature=signature)))


NAMED, UNNAMED, ONE = layout(*WEATHER), layout(), layout("sun", width=1)
FRAME = pd.DataFrame(np.arange(6.0).reshape(2, 3), columns=WEATHER)

LIBRARIES: dict[str, Callable[[pd.DataFrame], Any]] = {
    "pandas": lambda frame: frame,
    "pandas, nullable": lambda frame: frame.astype("Float64"),
    "polars": lambda frame: pl.DataFrame({name: frame[name].to_numpy() for name in frame.columns}),
    "records": lambda frame: frame.to_records(index=False),
    "dict": lambda frame: {name: frame[name].to_numpy() for name in frame.columns},
    "list of dicts": lambda frame: frame.to_dict("records"),
    "list of Series": lambda frame: [row for _, row in frame.iterrows()],
    "named tuples": lambda frame: list(frame.itertuples(index=False)),
}
"""A table of numbers in each of the forms that name its columns."""

TABLES = ("pandas", "pandas, nullable", "polars")

NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, pd.DataFrame]:
    """Numbers [T, 3], and a table of them whose columns are in any order."""
    steps = draw(st.integers(1, 5))
    values = np.asarray(draw(st.lists(NUMBERS, min_size=3 * steps, max_size=3 * steps))).reshape(steps, 3)
    frame = pd.DataFrame(values, columns=WEATHER)
    return values, frame[draw(st.permutations(WEATHER))]


def chunked(of: Layout, x: Any) -> bytes:
    ticket = of.chunk(0, x, 256)
    return b"".join(getattr(ticket, "inputs", ()))


ENTRIES: dict[str, Callable[[Layout, Any], bytes]] = {
    "step": chunked,
    "stream": lambda of, x: b"".join(chunked(of, row) for row in of.items(x)),
    "pool": lambda of, x: of.pool(np.arange(len(x)), x, None)[0].inputs[0],
    "pool, a table a row": lambda of, x: of.pool(np.arange(2), [x, x], None)[0].inputs[0],
    "predict": lambda of, x: layout(*WEATHER, time=False).predict(x)["x"].tobytes(),
    "history": lambda of, x: history(of, x)[0]["x"].tobytes(),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("library", TABLES)
@given(tables())
def test_columns_in_any_order_give_the_bits_of_the_array(
    entry: str, library: str, drawn: tuple[np.ndarray, pd.DataFrame]
) -> None:
    values, frame = drawn
    assert ENTRIES[entry](NAMED, LIBRARIES[library](frame)) == ENTRIES[entry](NAMED, values)


@pytest.mark.parametrize("library", LIBRARIES)
@given(tables())
def test_whatever_names_its_columns_is_read_by_name(library: str, drawn: tuple[np.ndarray, pd.DataFrame]) -> None:
    values, frame = drawn
    assert chunked(NAMED, LIBRARIES[library](frame)) == values.astype(np.float32).tobytes()


@given(tables())
def test_rows_of_a_table_are_steps_by_name(drawn: tuple[np.ndarray, pd.DataFrame]) -> None:
    values, frame = drawn
    for row, (_, series) in zip(values, frame.iterrows(), strict=True):
        for one in (series, series.to_dict(), dict(series), series.astype(object)):
            ticket = NAMED.chunk(0, one, 256)
            assert chunked(NAMED, one) == row.astype(np.float32).tobytes()
            assert getattr(ticket, "single", False)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.rename(columns={"wind": "humidity"}), ("missing: 'wind'", "unknown: 'humidity'")),
        (lambda f: f.assign(extra=1.0), ("unknown: 'extra'",)),
        (lambda f: f[["wind", "pressure"]], ("missing: 'temperature'",)),
    ],
    ids=["renamed", "more", "less"],
)
def test_columns_that_are_not_the_models_are_named(
    library: str, change: Callable[[pd.DataFrame], pd.DataFrame], says: tuple[str, ...]
) -> None:
    with pytest.raises(BadTensor, match="Rename or select them by name") as caught:
        NAMED.chunk(0, LIBRARIES[library](change(FRAME)), 256)
    assert all(part in caught.value.message for part in says)
    assert caught.value.metadata["field"] == "x"


def test_a_table_is_taken_by_position_only_where_the_signature_has_no_names_and_the_count_is_right() -> None:
    other = FRAME[["wind", "pressure", "temperature"]]
    assert chunked(UNNAMED, other) == chunked(UNNAMED, other.to_numpy())
    assert chunked(UNNAMED, other.iloc[0]) == chunked(UNNAMED, other.to_numpy()[0])
    assert chunked(UNNAMED, pd.DataFrame(FRAME.to_numpy())) == chunked(UNNAMED, FRAME.to_numpy())
    made_up = FRAME.set_axis(["x_2", "x_0", "x_1"], axis=1)
    assert chunked(UNNAMED, made_up) == chunked(UNNAMED, FRAME.to_numpy()[:, [1, 2, 0]])
    with pytest.raises(BadTensor, match="4 columns .* expected 3"):
        UNNAMED.chunk(0, FRAME.assign(more=1), 256)
    with pytest.raises(BadTensor, match="missing: 'temperature'"):
        NAMED.chunk(0, pd.DataFrame(FRAME.to_numpy()), 256)
    with pytest.raises(BadTensor, match="without the names of its columns"):
        NAMED.chunk(0, pd.Series([1.0, 2.0, 3.0]), 256)
    with pytest.raises(BadTensor, match="unique column names"):
        NAMED.chunk(0, pd.concat([FRAME, FRAME], axis=1), 256)


def test_a_series_of_one_feature_is_a_step_an_entry() -> None:
    for series in (pd.Series([1.0, 2.0]), pd.Series([1.0, 2.0], name="sun"), pl.Series("sun", [1.0, 2.0])):
        assert chunked(ONE, series) == np.asarray([1, 2], np.float32).tobytes()
        assert getattr(ONE.chunk(0, series, 256), "steps", 0) == 2
    with pytest.raises(BadTensor, match=r"'moon'; expected 'sun'.*\[T, 1\]"):
        ONE.chunk(0, pd.Series([1.0, 2.0], name="moon"), 256)
    with pytest.raises(BadTensor, match=r"\[T, 1\]: x.reshape"):
        ONE.chunk(0, np.zeros(7), 256)
    assert getattr(ONE.chunk(0, pd.DataFrame({"sun": [4.0]}).iloc[0], 256), "single", False)


COLUMNS: dict[str, tuple[Any, str]] = {
    "datetime": (pd.to_datetime(["2026-01-01", "2026-01-02"]), "dtype datetime64"),
    "timedelta": (pd.to_timedelta([1, 2]), "dtype timedelta64"),
    "text": (["1.5", "2"], "dtype str"),
    "objects": (pd.Series([1, 2], dtype=object), "dtype object"),
    "categories": (pd.Categorical(["a", "b"]), "dtype category"),
    "a gap": (pd.array([1, None], dtype="Int64"), "no value at row 1"),
    "a gap among floats": (pd.array([None, 2.0], dtype="Float64"), "no value at row 0"),
    "too large": ([1.0, 1e300], "1e+300"),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_that_has_no_numbers_is_named(kind: str) -> None:
    values, says = COLUMNS[kind]
    with pytest.raises(BadTensor) as caught:
        NAMED.chunk(0, FRAME.assign(wind=values), 256)
    assert "column 'wind'" in caught.value.message
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("values", "says"),
    [([1, None], "no value at row 1"), (["1", "2"], "String"), ([decimal.Decimal(1), None], "Decimal")],
)
def test_the_same_of_polars(values: list[Any], says: str) -> None:
    frame = pl.DataFrame({"wind": values, "temperature": [1, 2], "pressure": [1.0, 2.0]})
    with pytest.raises(BadTensor, match="column 'wind' of x") as caught:
        NAMED.chunk(0, frame, 256)
    assert says in caught.value.message
    with pytest.raises(BadTensor, match="collect"):
        NAMED.chunk(0, frame.lazy(), 256)  # type: ignore[arg-type]


GAPS: dict[str, Any] = {
    "masked": np.ma.masked_array([1.0, 1e20, 2.0], mask=[False, True, False]),
    "masked value": np.ma.masked_values([1.0, -999.0, 2.0], -999.0),
    "masked NaN": np.ma.masked_invalid([1.0, np.nan, 2.0]),
    "list with masked": [1.0, np.ma.masked, 2.0],
    "Float64": pd.array([1.0, None, 2.0], dtype="Float64"),
    "Int64": pd.array([1, None, 2], dtype="Int64"),
    "None": [1.0, None, 2.0],
    "NA": [1.0, pd.NA, 2.0],
    "NaT": [1.0, pd.NaT, 2.0],
    "object row": pd.Series([1.0, None, 2.0], index=WEATHER, dtype=object),
    "text": ["1", 2.0, 3.0],
    "dates": [1.0, datetime.date(2026, 1, 1), 2.0],
    "decimal": [1.0, decimal.Decimal(2), 2.0],
}


@pytest.mark.parametrize("kind", GAPS)
def test_an_entry_without_a_number_is_named_and_its_mask_never_dropped(kind: str) -> None:
    with pytest.raises(BadTensor) as caught:
        NAMED.chunk(0, GAPS[kind], 256)
    assert f"column {'temperature' if kind == 'text' else 'pressure'!r}" in caught.value.message


def test_a_mask_is_seen_wherever_it_is() -> None:
    masked = np.ma.masked_array(np.zeros((2, 3)), mask=np.asarray([[0, 0, 0], [0, 0, 1]], bool))
    for x in (masked, list(masked), [masked[0], masked[1]]):
        with pytest.raises(BadTensor, match="masked at column 'wind'"):
            NAMED.chunk(0, x, 256)
    with pytest.raises(BadTensor, match="masked"):
        NAMED.pool(np.arange(2), masked, None)
    with pytest.raises(BadTensor, match="masked"):
        starts.initial_states(NAMED.signature, {"h": masked[1]}, 1)
    assert chunked(NAMED, np.ma.masked_array(np.ones(3))) == np.ones(3, np.float32).tobytes()


def test_start_values_are_read_like_inputs() -> None:
    assert starts.initial_states(NAMED.signature, {"h": [1, 2, 3]}, 2)["h"].tolist() == [[1, 2, 3]] * 2
    assert starts.initial_states(NAMED.signature, {"h": FRAME}, 2)["h"].tolist() == FRAME.to_numpy().tolist()
    for states, says in (
        ({"h": ["1", "2", "3"]}, "text|dtype"),
        ({"h": [1, None, 3]}, "None"),
        ({"h": [1e300, 0, 0]}, "1e\\+300"),
        ({"q": [1]}, "'q'; expected any of 'h'"),
    ):
        with pytest.raises(BadTensor, match=says):
            starts.initial_states(NAMED.signature, states, 2)
    with pytest.raises(TypeError, match="dict with an array for any of 'h'"):
        starts.initial_states(NAMED.signature, [1, 2, 3], 1)  # type: ignore[arg-type]


class Tensor:
    """What a tensor of torch looks like, as far as it is asked."""

    def __init__(self, values: Any, dtype: str = "torch.float32", grad: bool = False) -> None:
        self.values, self.kind, self.grad = values, dtype, grad
        self.dtype = type("dtype", (), {"is_floating_point": "float" in dtype, "__str__": lambda _: dtype})()

    def detach(self) -> Tensor:
        return Tensor(self.values, self.kind)

    def cpu(self) -> Tensor:
        return self

    def float(self) -> Tensor:
        return Tensor(self.values)

    def numpy(self) -> Any:
        if self.grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        if self.kind == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        if self.kind == "meta":
            raise NotImplementedError("Cannot copy out of meta tensor; no data!\nmore")
        return np.asarray(self.values, np.float32)


def test_tensors_come_detached_and_bfloat16_as_float32() -> None:
    wanted = np.asarray([1, 2, 3], np.float32).tobytes()
    for x in (
        Tensor([1, 2, 3], grad=True),
        Tensor([1, 2, 3], "torch.bfloat16"),
        [Tensor(1, grad=True), Tensor(2), Tensor(3)],
    ):
        assert chunked(NAMED, x) == wanted
    with pytest.raises(BadTensor, match="tensor of dtype meta that NumPy cannot hold: Cannot copy"):
        NAMED.chunk(0, Tensor([1, 2, 3], "meta"), 256)  # type: ignore[arg-type]


def test_what_says_how_it_becomes_an_array_is_taken() -> None:
    class Exchanged:
        def __dlpack__(self, **kwargs: Any) -> Any:
            return np.ones(3, np.float32).__dlpack__(**kwargs)

        def __dlpack_device__(self) -> Any:
            return np.ones(3, np.float32).__dlpack_device__()

    class Labelled:
        """An array of xarray."""

        dims, coords = ("feature",), {"feature": np.asarray(["wind", "pressure", "temperature"])}

        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return np.asarray([3.0, 2.0, 1.0])

    assert chunked(NAMED, Exchanged()) == np.ones(3, np.float32).tobytes()
    assert chunked(NAMED, Labelled()) == np.asarray([1, 2, 3], np.float32).tobytes()
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    rows = connection.execute("select 3.0 wind, 1.0 temperature, 2.0 pressure").fetchall()
    connection.close()
    assert chunked(NAMED, rows) == np.asarray([1, 2, 3], np.float32).tobytes()
    with pytest.raises(BadTensor, match="set"):
        NAMED.chunk(0, {1.0, 2.0, 3.0}, 256)  # type: ignore[arg-type]


def test_numbers_that_the_dtype_has_not_are_refused_and_infinities_are_not_made() -> None:
    for x in ([1.0, 1e300, 1.0], np.asarray([1, 2, 1e39])):
        with pytest.raises(BadTensor, match="float32 ends at 3.4"):
            NAMED.chunk(0, x, 256)
    assert np.isinf(np.frombuffer(chunked(NAMED, [1.0, np.inf, 1.0]), np.float32)).any()
    with pytest.raises(BadTensor, match="outside int64"):
        layout(dtype="int64").chunk(0, np.asarray([2**63, 1, 2], np.uint64), 256)


Point = namedtuple("Point", "wind temperature pressure")


@pytest.mark.parametrize("library", TABLES)
async def test_every_call_takes_a_table_by_name(connect: Connect, twin: Twin, fake: Fake, library: str) -> None:
    for name in ("sum", "double"):
        fake.models[name].signature.inputs[0].columns.extend(["a", "b"])
    client, values = await connect(), np.asarray([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    table = LIBRARIES[library](pd.DataFrame(values, columns=["a", "b"])[["b", "a"]])
    session = await twin.call(client.session, "sum")
    assert (await twin.call(session.step, table)).tolist() == [[1, 10], [3, 30], [6, 60]]
    assert [row.tolist() for row in await twin.collect(session.stream, table)] == [[7, 70], [9, 90], [12, 120]]
    warm = await twin.call(client.session, "sum", history=table)
    assert (await twin.call(warm.step, np.zeros(2))).tolist() == [6, 60]
    pool = await twin.call(client.sessions, "sum", 3)
    assert (await twin.call(pool.step, table)).tolist() == values.tolist()
    assert (await twin.call(client.predict, "double", table)).tolist() == (2 * values).tolist()
    ahead = await twin.call(client.forecast, "sum", table, h=1)
    assert type(ahead) is type(table)
    assert np.asarray(ahead).tolist() == (await twin.call(client.forecast, "sum", values, h=1)).tolist()


def test_series_in_a_long_table_come_apart_in_the_order_of_time() -> None:
    long = pd.DataFrame(
        {
            "ds": [2, 1, 1, 3],
            "wind": [20.0, 10, 5, 30],
            "unique_id": ["b", "b", "a", "b"],
            "temperature": [2.0, 1, 4, 3],
            "pressure": 0.0,
        }
    )
    for table in (long, pl.DataFrame(long.to_dict("list"))):
        history = dataframes.read_history(NAMED, table)
        assert history is not None
        assert history.past.inputs["x"].tolist() == [[1, 0, 10], [2, 0, 20], [3, 0, 30], [4, 0, 5]]
        assert (history.names, history.past.lengths.tolist()) == (["b", "a"], [3, 1])
        told = Told({"y": np.zeros((2, 2, 1), np.float32)}, {}, {})
        out = dataframes.write_forecast(NAMED, history, Wish(2), told)
        assert list(out.columns) == ["unique_id", "ds", NAMED.model.name]
        assert sorted(zip(out["unique_id"], out["ds"], strict=True)) == [("a", 2), ("a", 3), ("b", 4), ("b", 5)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ds": [1, 1, 2]}, "series 'a' has ds 1 more than once"),
        ({"unique_id": ["a", None, "a"]}, "'unique_id' has no value at row 1"),
        ({"ds": [1, None, 2]}, "'ds' has no value at row 1"),
        ({"pressure": ["x", "y", "z"]}, "column 'pressure'"),
        ({"more": [1, 2, 3]}, "unknown: 'more'"),
    ],
)
@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame])
def test_a_long_table_that_cannot_be_read_says_why(make: Any, change: dict[str, Any], says: str) -> None:
    good = {"unique_id": ["a"] * 3, "ds": [1, 2, 3], "temperature": [1.0] * 3, "pressure": [1.0] * 3, "wind": [1.0] * 3}
    with pytest.raises(BadTensor, match=says):
        dataframes.read_history(NAMED, make(good | change))


def told_times(table: Any, h: int = 2) -> list[Any]:
    history = dataframes.read_history(ONE, table)
    assert history is not None
    told = Told({"y": np.zeros((len(history.names), h, 1), np.float32)}, {}, {})
    return list(dataframes.write_forecast(ONE, history, Wish(h), told)["ds"])


@pytest.mark.parametrize(
    ("times", "after"),
    [
        (pd.date_range("2026-01-01", periods=9).delete(7), ["2026-01-10", "2026-01-11"]),
        (pd.date_range("2026-01-01", periods=9, freq="h").delete([4, 7]), ["2026-01-01T09", "2026-01-01T10"]),
        (pd.date_range("2026-01-01", periods=9, freq="MS").delete(7), ["2026-10-01", "2026-11-01"]),
        (pd.date_range("2026-01-01", periods=9, freq="ME").delete([3, 7]), ["2026-10-31", "2026-11-30"]),
        (pd.bdate_range("2026-01-05", periods=10).delete(8), ["2026-01-19", "2026-01-20"]),
        (pd.to_datetime(["2026-01-01", "2026-01-04", "2026-01-06"]), ["2026-01-08", "2026-01-10"]),
    ],
)
def test_times_that_are_left_out_do_not_change_how_far_times_are_apart(times: Any, after: list[str]) -> None:
    expected = [pd.Timestamp(time) for time in after]
    data = {"ds": times, "y": np.zeros(len(times))}
    assert told_times(pd.DataFrame(data)) == expected
    assert told_times(pl.DataFrame(data | {"ds": list(times.to_pydatetime())})) == expected


def test_a_series_of_few_times_goes_on_as_all_of_the_table_do() -> None:
    days = pd.date_range("2026-01-01", periods=9)
    parts = [
        ("a", days),
        ("b", days[[0, 1, 3, 4, 7]]),
        ("c", days[:1]),
        ("d", pd.date_range("2026-01-01", periods=3, freq="2D")),
    ]
    table = pd.concat(pd.DataFrame({"unique_id": name, "ds": part, "y": 0.0}) for name, part in parts)
    assert [time.day for time in told_times(table, 1)] == [10, 9, 2, 7]


def test_whose_and_when_may_be_the_labels_of_rows() -> None:
    days = pd.date_range("2026-01-01", periods=3)
    table = pd.DataFrame({"unique_id": ["a"] * 3 + ["b"] * 3, "ds": [*days, *days], "y": np.arange(6.0)})
    unnamed = table.set_index("ds").rename_axis(None)
    for labelled in (
        table.set_index(["unique_id", "ds"]),
        table.set_index("unique_id"),
        table.set_index("ds"),
        unnamed,
    ):
        history = dataframes.read_history(ONE, labelled)
        assert history is not None
        assert (history.names, history.past.lengths.tolist()) == (["a", "b"], [3, 3])
        assert [time.day for time in told_times(labelled)] == [4, 5, 4, 5]
    other = table.rename(columns={"unique_id": "shop", "ds": "day"}).set_index(["shop", "day"])
    with pytest.raises(BadTensor, match=r"levels 'shop', 'day'; .*rename_axis"):
        dataframes.read_history(ONE, other)


def test_a_row_of_many_columns_for_one_feature_says_which_to_take() -> None:
    row = pd.DataFrame({"unique_id": ["a"], "sun": [1.0]}).iloc[0]
    with pytest.raises(BadTensor, match=r"row with 'unique_id', 'sun'; expected 'sun' alone: row\[\['sun'\]\]"):
        history(ONE, row)


def test_months_go_on_as_months() -> None:
    days = [datetime.date(2026, 11, 30), datetime.date(2026, 12, 31), datetime.date(2027, 1, 31)]
    for past, after in (
        (days, ["2027-02-28", "2027-03-31"]),
        ([day.replace(day=1) for day in days], ["2027-02-01", "2027-03-01"]),
        ([days[0] + n * datetime.timedelta(30) for n in range(3)], ["2027-02-28", "2027-03-30"]),
    ):
        history = dataframes.read_history(ONE, pl.DataFrame({"ds": past, "y": [1.0, 2.0, 3.0]}))
        assert history is not None
        out = dataframes.write_forecast(ONE, history, Wish(2), Told({"y": np.zeros((1, 2, 1))}, {}, {}))
        assert [str(day) for day in out["ds"].to_list()] == after
        assert out.columns == ["ds", ONE.model.name]


async def test_what_is_not_finite_is_named(connect: Connect, twin: Twin, fake: Fake) -> None:
    fake.models["sum"].signature.inputs[0].columns.extend(["a", "b"])
    client = await connect()
    session = await twin.call(client.session, "sum", "station-7")
    x = np.zeros((5, FEATURES))
    x[3, 1] = np.nan
    with pytest.raises(Exception, match="session 'station-7': x is nan in step 3 of those that came, column 'b'"):
        await twin.call(session.step, x)


def test_a_text_for_numbers_says_what_makes_numbers_of_it() -> None:
    with pytest.raises(BadTensor, match="'good film' of type str; expected numbers of dtype int64; .*encode_text"):
        history(layout(dtype="int64"), "good film")
    with pytest.raises(BadTensor, match=r"'good' of type str at .*; expected numbers of dtype int64; .*encode_text"):
        history(layout(dtype="int64"), ["good", "film"])
    with pytest.raises(BadTensor, match="expected numbers of dtype float32$"):
        history(layout(), "good film")
