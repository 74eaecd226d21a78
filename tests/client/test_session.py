"""A session with the synchronous and the asyncio client, against a real gRPC server."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from statestream import PoolError, errors
from tests.client.fake_server import Fake
from tests.client.twins import Connect, Twin
from tests.client.world import FEATURES, ones


async def test_steps_keep_the_state_and_the_shape_of_their_input(connect: Connect, twin: Twin) -> None:
    client = await connect()
    session = await twin.call(client.session, "sum", "a")
    assert session.created
    one = await twin.call(session.step, ones())
    assert one.shape == (FEATURES,)
    many = await twin.call(session.step, ones(3))
    assert many[:, 0].tolist() == [2, 3, 4]
    assert (session.position, session.id, session.version) == (4, "a", 1)
    long = await twin.call(session.step, ones(100))
    assert long[:, 0].tolist() == list(range(5, 105))


async def test_numbers_are_converted_and_the_answer_is_writable(connect: Connect, twin: Twin) -> None:
    session = await twin.call((await connect()).session, "sum")
    y = await twin.call(session.step, [1, 2])
    assert y.dtype == np.float32
    y += 1
    y = await twin.call(session.step, np.array([0.5, 0.5], np.float64))
    assert y.tolist() == [1.5, 2.5]
    y = await twin.call(session.step, {"x": [0, 0]})
    assert y.tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (np.zeros(3, np.float32), "shape [3]"),
        (np.zeros((2, 2, 2), np.float32), "shape [2, 2, 2]"),
        (np.zeros((0, FEATURES), np.float32), "0 steps"),
        (np.array(["a", "b"]), "dtype"),
        ({"z": [1, 2]}, "'z'"),
        ([[1, 2], [3]], "not an array: its entries have different lengths"),
    ],
)
async def test_a_wrong_input_is_refused_before_it_is_sent(connect: Connect, twin: Twin, x: Any, says: str) -> None:
    session = await twin.call((await connect()).session, "sum")
    with pytest.raises(errors.BadTensor) as caught:
        await twin.call(session.step, x)
    assert says in caught.value.message
    assert session.position == 0


async def test_a_named_session_is_detached_and_resumed_an_anonymous_one_deleted(
    connect: Connect, twin: Twin, fake: Fake
) -> None:
    client = await connect()
    named = await twin.call(client.session, "sum", "station-7")
    await twin.call(named.step, ones())
    await twin.call(named.close)
    assert named.closed
    assert fake.world.durable("station-7") == 1
    with pytest.raises(errors.Closed):
        await twin.call(named.step, ones())
    again = await twin.call(client.session, "sum", "station-7", mode="resume")
    assert not again.created
    assert again.position == 1
    anonymous = await twin.call(client.session, "sum")
    await twin.call(anonymous.close)
    assert list(fake.world.rows) == ["station-7"]
    await twin.call(again.delete)
    assert not fake.world.rows


async def test_open_modes_and_missing_models_are_typed_errors(connect: Connect, twin: Twin) -> None:
    client = await connect()
    with pytest.raises(errors.SessionNotFound):
        await twin.call(client.session, "sum", "a", mode="resume")
    await twin.call(client.session, "sum", "a", mode="create")
    with pytest.raises(errors.SessionExists):
        await twin.call(client.session, "sum", "a", mode="create")
    with pytest.raises(errors.ModelNotFound):
        await twin.call(client.session, "nothing")
    with pytest.raises(errors.Unsupported, match=r"client\.predict"):
        await twin.call(client.session, "double")
    with pytest.raises(ValueError, match="mode"):
        await twin.call(client.session, "sum", "a", mode="sometimes")


async def test_a_session_stays_with_its_version_until_it_is_moved(connect: Connect, twin: Twin, fake: Fake) -> None:
    """`upgrade` names the version, True is the newest; the session goes on there over a restart, and can go back."""
    client = await connect()
    old = await twin.call(client.session, "sum", "a")
    assert (await twin.call(old.step, ones())).tolist() == [1, 1]
    fake.world.newest = 2
    await twin.call(old.close)
    with pytest.raises(errors.ModelChanged):
        await twin.call(client.session, "sum", "a", version=2)
    known = await twin.call(client.session, "sum", "a")
    assert known.version == 1
    await twin.call(known.close)
    moved = await twin.call(client.session, "sum", "a", upgrade=2)
    assert (moved.version, moved.position, moved.created) == (2, 1, False)
    await asyncio.to_thread(fake.restart)
    assert (await twin.call(moved.step, ones())).tolist() == [11, 11]
    with pytest.raises(errors.AlreadyOpen):
        await twin.call(client.session, "sum", "a", upgrade=9)
    assert (await twin.call(moved.step, ones())).tolist() == [21, 21]
    await twin.call(moved.close)
    with pytest.raises(errors.ModelChanged):
        await twin.call(client.session, "sum", "a", upgrade=9)
    back = await twin.call(client.session, "sum", "a", upgrade=1)
    assert (await twin.call(back.step, ones())).tolist() == [22, 22]
    await twin.call(back.close)
    assert (await twin.call(client.session, "sum", "a", upgrade=True)).version == 2
    assert (await twin.call(client.session, "sum", "new", upgrade=False, version=1)).version == 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"upgrade": 0}, "1 or more, an alias, or True"),
        ({"upgrade": 2, "version": 1}, "version to move to as upgrade alone"),
    ],
)
async def test_what_upgrade_cannot_be(connect: Connect, twin: Twin, wrong: dict[str, Any], says: str) -> None:
    client = await connect()
    for call in (
        lambda: client.session("sum", "a", **wrong),
        lambda: client.sessions("sum", ids=["a"], **wrong),
        lambda: client.restore(b"", model="sum", **wrong),
    ):
        with pytest.raises(ValueError, match=says):
            await twin.call(call)


async def test_history_and_initial_state_start_a_new_session_only(connect: Connect, twin: Twin) -> None:
    client = await connect()
    session = await twin.call(client.session, "sum", "a", initial_state={"h": [10, 20]}, history=ones(3))
    assert session.position == 3
    assert (await twin.call(session.step, ones())).tolist() == [14, 24]
    await twin.call(session.close)
    again = await twin.call(client.session, "sum", "a", history=ones(3))
    assert again.position == 4
    with pytest.raises(errors.BadTensor):
        await twin.call(client.session, "sum", initial_state={"c": [10, 20]})


async def test_stream_is_in_order_and_survives_a_cut(connect: Connect, twin: Twin, fake: Fake) -> None:
    session = await twin.call((await connect()).session, "sum")
    assert [int(y[0]) for y in await twin.collect(session.stream, ones(100))] == list(range(1, 101))
    fake.lose_replies = 3
    assert [int(y[0]) for y in await twin.collect(session.stream, ones(50), ahead=8)] == list(range(101, 151))
    assert fake.streams == 4


async def test_a_bad_chunk_leaves_the_session_where_it_was(connect: Connect, twin: Twin) -> None:
    session = await twin.call((await connect()).session, "sum")
    await twin.call(session.step, ones())
    with pytest.raises(errors.NonFiniteState):
        await twin.call(session.step, [np.nan, 0])
    assert session.position == 1
    assert (await twin.call(session.step, ones()))[0] == 2


async def test_flush_and_reset(connect: Connect, twin: Twin) -> None:
    session = await twin.call((await connect()).session, "sum", "a")
    await twin.call(session.step, ones(5))
    assert session.durable_position == 0
    assert await twin.call(session.flush) == 5
    await twin.call(session.reset)
    assert (session.position, session.origin) == (6, 6)
    assert (await twin.call(session.step, ones()))[0] == 1


async def test_fork_snapshot_restore(connect: Connect, twin: Twin, fake: Fake) -> None:
    client = await connect()
    session = await twin.call(client.session, "sum", "a")
    await twin.call(session.step, ones(4))
    fork = await twin.call(session.fork, "what-if")
    assert (await twin.call(fork.step, ones()))[0] == 5
    assert session.position == 4
    blob = await twin.call(session.snapshot)
    copy = await twin.call(client.restore, blob, model="sum", id="copy")
    assert copy.position == 4
    assert (await twin.call(copy.step, ones()))[0] == 5
    passing = await twin.call(session.fork)
    await twin.call(passing.close)
    assert sorted(fake.world.rows) == ["a", "copy", "what-if"]
    with pytest.raises(errors.SnapshotInvalid):
        await twin.call(client.restore, b"", model="sum")


async def test_a_copy_is_made_of_the_history_that_its_caller_has(connect: Connect, twin: Twin, fake: Fake) -> None:
    session = await twin.call((await connect()).session, "sum", "a")
    await twin.call(session.step, ones(3))
    fake.breaks = 1  # The call comes under the epoch of before, and is made again under the new one.
    assert (await twin.call(session.fork, "copy")).position == 3
    assert fake.breaks == 0
    fake.world.rows["a"].epoch += 1  # Somebody took the session, and nobody said so yet.
    with pytest.raises(errors.SessionMoved, match="epoch"):
        await twin.call(session.fork, "other")
    with pytest.raises(errors.SessionMoved, match="epoch"):
        await twin.call(session.snapshot)
    assert "other" not in fake.world.rows


async def test_a_session_that_failed_says_what_was_durable(connect: Connect, twin: Twin) -> None:
    """Who reads on from there would leave out what was answered and not saved."""
    first, second = await connect(), await connect()
    mine = await twin.call(first.session, "sum", "a")
    await twin.call(mine.step, ones(2))
    await twin.call(mine.flush)
    await twin.call(mine.step, ones(3))
    pool = await twin.call(first.sessions, "sum", ids=["b"])
    await twin.call(pool.step, ones(1)[None])
    for name in "ab":
        await twin.call(second.session, "sum", name)
    with pytest.raises(errors.SessionMoved):
        await twin.call(mine.step, ones())
    with pytest.raises(PoolError):
        await twin.call(pool.step, ones(1)[None])
    assert (mine.position, mine.durable_position) == (5, 2)
    assert (pool.positions.tolist(), pool.durable_positions.tolist()) == ([1], [0])
    await twin.call(mine.reset)
    assert mine.durable_position <= mine.position == 6
    await twin.call(mine.close)
    assert mine.durable_position <= 6


async def test_outputs_that_a_crashed_caller_never_saw_come_again(connect: Connect, twin: Twin, fake: Fake) -> None:
    crashed, client = await connect(), await connect()
    for name in "ab":
        session = await twin.call(crashed.session, "sum", name)
        await twin.call(session.step, ones())
        await twin.call(session.step, ones(2))
    back = await twin.call(client.session, "sum", "a", return_replies=True)
    assert back.position == 3
    replies = list(fake.world.rows["a"].replies)
    assert replies[-1] == 1
    assert [(start, y[:, 0].tolist()) for start, y in back.replies][-1] == (1, [2, 3])
    assert [start for start, _ in back.replies] == replies
    assert (await twin.call(back.step, ones(2)))[:, 0].tolist() == [4, 5]
    assert (await twin.call(back.step, ones()))[0] == 6
    assert list(fake.world.rows["a"].replies) == [5]
    pool = await twin.call(client.sessions, "sum", ids=["c", "b"], return_replies=True)
    assert list(pool.replies) == [1]
    assert pool.replies[1][-1][0] == 1
    plain = await twin.call(client.session, "sum", "b")
    assert plain.replies == []


async def test_a_second_client_takes_over_and_the_first_is_told(connect: Connect, twin: Twin) -> None:
    first, second = await connect(), await connect()
    mine = await twin.call(first.session, "sum", "a")
    await twin.call(mine.step, ones())
    theirs = await twin.call(second.session, "sum", "a")
    assert theirs.position == 1
    with pytest.raises(errors.SessionMoved):
        await twin.call(mine.step, ones())
    back = await twin.call(first.session, "sum", "a")
    assert (await twin.call(back.step, ones()))[0] == 2
