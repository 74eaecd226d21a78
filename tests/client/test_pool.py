"""A pool of sessions with the synchronous and the asyncio client, against a real gRPC server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import statestream
from statestream import errors
from tests.client.fake_server import Fake
from tests.client.twins import Connect, Twin
from tests.client.world import FEATURES, ones


async def test_pool_steps_rows_ragged_and_with_errors_by_row(connect: Connect, twin: Twin, fake: Fake) -> None:
    client = await connect()
    pool = await twin.call(client.sessions, "sum", 5)
    assert len(pool) == 5
    y = await twin.call(pool.step, ones(5))
    assert y.shape == (5, FEATURES)
    y = await twin.call(pool.step, ones(2, 3), rows=[4, 0])
    assert y[:, :, 0].tolist() == [[2, 3, 4], [2, 3, 4]]
    assert pool.positions.tolist() == [4, 1, 1, 1, 4]
    y = await twin.call(pool.step, ones(5, 2), lengths=[2, 1, 0, 2, 2])
    assert y[:, :, 0].tolist() == [[5, 6], [2, 0], [0, 0], [2, 3], [5, 6]]
    x = ones(5)
    x[3] = np.nan
    with pytest.raises(statestream.PoolError) as caught:
        await twin.call(pool.step, x)
    assert list(caught.value.errors) == [3]
    assert isinstance(caught.value.errors[3], errors.NonFiniteState)
    assert isinstance(caught.value.outputs, np.ndarray)
    assert caught.value.outputs[:, 0].tolist() == [7, 3, 2, 0, 7]
    with pytest.raises(errors.BadTensor):
        await twin.call(pool.step, ones(4))
    with pytest.raises(ValueError, match="twice"):
        await twin.call(pool.step, ones(2), rows=[1, 1])
    assert (await twin.call(pool.flush)).tolist() == pool.positions.tolist()
    await twin.call(pool.close)
    assert not fake.world.rows


async def test_rows_that_a_pool_does_not_have_are_told(connect: Connect, twin: Twin) -> None:
    pool = await twin.call((await connect()).sessions, "sum", 5)
    for rows, message in (
        ([1, 9], "rows has 9; the pool has 5 rows"),
        ([-6, 1], "rows has -6; the pool has 5 rows"),
        ([0.5, 1], r"dtype float64 and shape \[2\]; expected a list of numbers"),
        (3, r"dtype int64 and shape \[\]; expected a list of numbers"),
        ([True, False], r"mask of shape \[2\]; expected \[5\]"),
        ([4, -1], "rows has an entry twice"),
    ):
        with pytest.raises((ValueError, IndexError), match=message):
            await twin.call(pool.step, ones(2), rows=rows)
    await twin.call(pool.step, ones(2), rows=[True, False, False, False, True])
    assert (await twin.call(pool.step, ones(0), rows=[])).shape == (0, FEATURES)
    assert pool.positions.tolist() == [1, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"n": -1}, "n is -1; expected 0 or more"),
        ({"n": 10**9}, "n is 1000000000; expected 16777216 or less"),
        ({}, "neither n nor ids came"),
        ({"ids": "abc"}, r"ids is the text 'abc'; expected several, as in \['abc'\]"),
        ({"ids": ["a", 5]}, "id is 5 of type int; expected a str, as in '5'"),
        ({"ids": ["a", ""]}, "id '' has 0 bytes of UTF-8; expected 1 to 256"),
        ({"ids": ["a", "a"]}, "ids has an entry twice"),
        ({"n": 3, "ids": ["a", "b"]}, "ids has 2 entries; expected 3"),
        ({"n": 1, "upgrade": 1.5}, "upgrade is 1.5 of type float; expected a whole number"),
        ({"n": 1, "upgrade": 0}, "upgrade is 0; expected 1 or more"),
    ],
)
async def test_pools_that_cannot_be_are_told(
    connect: Connect, twin: Twin, wanted: dict[str, Any], message: str
) -> None:
    client = await connect()
    with pytest.raises((ValueError, TypeError), match=message):
        await twin.call(client.sessions, "sum", **wanted)


async def test_a_pool_that_cannot_open_lets_go_of_the_rest(connect: Connect, twin: Twin) -> None:
    client = await connect()
    await twin.call(client.session, "sum", "b")
    with pytest.raises(statestream.PoolError) as caught:
        await twin.call(client.sessions, "sum", ids=["a", "b", "c"], mode="create")
    assert list(caught.value.errors) == [1]
    pool = await twin.call(client.sessions, "sum", ids=["a", "c"], mode="resume")
    assert (await twin.call(pool.step, ones(2))).shape == (2, FEATURES)


async def test_a_pool_moves_its_sessions_to_one_version(connect: Connect, twin: Twin, fake: Fake) -> None:
    client = await connect()
    await twin.call((await twin.call(client.sessions, "sum", ids=["a", "b"])).close)
    fake.world.newest = 2
    pool = await twin.call(client.sessions, "sum", ids=["a", "b", "c"], upgrade=True)
    assert pool.version == 2
    assert (await twin.call(pool.step, np.ones((3, FEATURES))))[:, 0].tolist() == [10, 10, 10]
