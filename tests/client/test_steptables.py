"""Steps of a pool as a table: by id, in any order, and the same rows back; what is missing or twice is refused."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

import statestream
from statestream.errors import BadTensor
from tests.client.fake_server import Fake
from tests.client.twins import Connect, Twin

KINDS = {"pandas": pd.DataFrame, "polars": pl.DataFrame}
TABLE = {"unique_id": ["r", "p", "q"], "b": [6.0, 2.0, 4.0], "a": [5.0, 1.0, 3.0]}


@pytest.fixture
def named(fake: Fake) -> None:
    fake.models["sum"].signature.inputs[0].columns.extend(["a", "b"])


def plain(table: Any) -> dict[str, list[Any]]:
    return {name: list(table[name]) for name in table.columns}


@pytest.mark.parametrize("kind", KINDS)
async def test_rows_come_in_any_order_and_go_back_in_it(connect: Connect, twin: Twin, named: None, kind: str) -> None:
    client = await connect()
    pool = await twin.call(client.sessions, "sum", ids=list("pqr"))
    found = await twin.call(pool.step, KINDS[kind](TABLE))
    assert type(found) is KINDS[kind]
    assert plain(found) == {"unique_id": ["r", "p", "q"], "sum-y_0": [5, 1, 3], "sum-y_1": [6, 2, 4]}
    days = [datetime.date(2026, 1, day) for day in (3, 1, 2, 2, 1)]
    long = KINDS[kind]({"ds": days, "unique_id": list("pppqq"), "a": [3.0, 1.0, 2.0, 20.0, 10.0], "b": [0.0] * 5})
    found = await twin.call(pool.step, long, ["p", "q"])
    assert plain(found)["sum-y_0"] == [7, 2, 4, 33, 13]
    assert list(found["ds"]) == days
    assert pool.positions.tolist() == [4, 3, 1]
    (answer,) = [*(await twin.collect(pool.stream, [statestream.PoolStep(long, ["p", "q"])]))]
    assert plain(answer)["sum-y_0"] == [13, 8, 10, 63, 43]


@pytest.mark.parametrize("kind", KINDS)
async def test_one_row_needs_no_frequency(connect: Connect, twin: Twin, named: None, kind: str) -> None:
    client = await connect()
    pool = await twin.call(client.sessions, "sum", ids=["p"])
    when = [datetime.datetime(2026, 1, 1)]
    found = await twin.call(pool.step, KINDS[kind]({"unique_id": ["p"], "ds": when, "a": [1.0], "b": [2.0]}))
    assert plain(found) == {"unique_id": ["p"], "ds": when, "sum-y_0": [1], "sum-y_1": [2]}


async def test_labels_of_pandas_stay(connect: Connect, twin: Twin, named: None) -> None:
    client = await connect()
    pool = await twin.call(client.sessions, "sum", ids=["7", "8"])
    table = pd.DataFrame({"unique_id": [8, 7], "a": [1.0, 2.0], "b": 0.0}, index=["x", "y"])
    found = await twin.call(pool.step, table)
    assert list(found.index) == ["x", "y"]
    assert list(found["unique_id"]) == [8, 7]
    assert list(table.assign(y=found["sum-y_0"])["y"]) == [1, 2]
    by_id = table.set_index("unique_id")
    assert plain(await twin.call(pool.step, by_id)) == {"unique_id": [8, 7], "sum-y_0": [2, 4], "sum-y_1": [0, 0]}


@pytest.mark.parametrize(
    ("change", "rows", "said"),
    [
        ({"unique_id": ["r", "p", "p"]}, None, "several rows of 'p', and no column 'ds'"),
        ({"unique_id": ["r", "p", "x"]}, None, "rows of 'x', and the pool no such sessions; it has 'p', 'q', 'r'"),
        ({"unique_id": ["r", "p", None]}, None, "'unique_id' has no value at row 2"),
        ({}, ["p", "q"], "rows of 'r', which rows= leaves out"),
        ({"unique_id": ["r"], "a": [1.0], "b": [1.0]}, None, r"no row of 'p', 'q'.*rows=table\['unique_id'\].unique"),
        ({"c": [1.0, 2.0, 3.0]}, None, "unknown: 'c'"),
        ({"unique_id": ["p", "p", "q"], "ds": [1, 1, 1]}, ["p", "q"], "series 'p' has ds 1 more than once"),
        ({"unique_id": [], "a": [], "b": []}, None, "no rows"),
    ],
)
async def test_what_is_missing_or_twice_says_what_to_do(
    connect: Connect, twin: Twin, named: None, change: dict[str, Any], rows: Any, said: str
) -> None:
    client = await connect()
    pool = await twin.call(client.sessions, "sum", ids=list("pqr"))
    for kind in KINDS.values():
        with pytest.raises(BadTensor, match=said):
            await twin.call(pool.step, kind({**TABLE, **change}), rows)
    assert pool.positions.tolist() == [0, 0, 0]


async def test_rows_that_failed_are_in_the_table_of_the_error(connect: Connect, twin: Twin, named: None) -> None:
    client = await connect()
    pool = await twin.call(client.sessions, "sum", ids=list("pqr"))
    table = pd.DataFrame({**TABLE, "a": [5.0, np.inf, 3.0]})
    with pytest.raises(statestream.PoolError, match="session 'p': x is inf in step 0") as caught:
        await twin.call(pool.step, table)
    assert plain(caught.value.outputs)["sum-y_0"] == [5, 0, 3]
    with pytest.raises(BadTensor, match="lengths came with a table"):
        await twin.call(pool.step, table, lengths=[1, 1, 1])
    with pytest.raises(ValueError, match=r"cursors|one for each"):
        await twin.call(pool.step, table, cursors=[b"x"])
    await twin.call(pool.step, pd.DataFrame(TABLE), cursors=[b"of p", None, b"of r"])
    assert pool.cursors == [b"of p", None, b"of r"]


async def test_rows_by_their_ids(connect: Connect, twin: Twin) -> None:
    client = await connect()
    pool = await twin.call(client.sessions, "sum", ids=list("pqr"))
    await twin.call(pool.step, np.ones((2, 2), np.float32), ["r", "p"])
    assert pool.positions.tolist() == [1, 0, 1]
    await twin.call(pool.reset, rows=np.array(["r"]))
    with pytest.raises(IndexError, match="rows has 'x'; the pool has no such sessions, it has 'p', 'q', 'r'"):
        await twin.call(pool.step, np.ones((2, 2), np.float32), ["x", "p"])
    with pytest.raises(ValueError, match="twice"):
        await twin.call(pool.step, np.ones((2, 2), np.float32), ["p", "p"])
