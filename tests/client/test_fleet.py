"""A client of several shards over the wire: what a call carries, what a pool is, what fails alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

import statestream
from statestream import errors
from statestream.settings import Settings
from statestream.shards import shard_of
from tests.client.fake_server import Fake
from tests.client.twins import Connect, Twin
from tests.client.world import FEATURES, World, ones

SHARDS = 4


def key(id: str) -> str:
    return f"fleet-{shard_of('sum', id, SHARDS)}"


def one_of_each() -> list[str]:
    """The ids of sessions of which each belongs to another shard, by shard."""
    found = {shard_of("sum", id, SHARDS): id for id in map(str, range(100))}
    return [found[shard] for shard in range(SHARDS)]


@pytest.fixture
async def connect(twin: Twin, fake: Fake) -> AsyncIterator[Connect]:
    clients = []

    async def connect(address: str | None = None, **settings: Any) -> Any:
        more = {"on_reconnect": settings.pop("on_reconnect", None)}
        chosen: dict[str, Any] = {"shards": SHARDS, "route_key": "fleet"} | settings
        client = await twin.connect(address or fake.address, settings=Settings(**chosen), **more)
        clients.append(client)
        return client

    yield connect
    for client in clients:
        await twin.call(client.close)


async def test_all_about_a_session_carries_the_key_of_its_shard(connect: Connect, twin: Twin, fake: Fake) -> None:
    client, ids = await connect(), one_of_each()
    for id in ids:
        session = await twin.call(client.session, "sum", id)
        assert (await twin.call(session.step, ones()))[0] == 1
        del fake.routes[:]
        blob = await twin.call(session.snapshot)
        await twin.collect(session.forecast, 1)
        beside = await twin.call(session.fork)
        assert {route for method, route in fake.routes if method != "GetModel"} == {key(id)}
        assert fake.opened[beside.id] == key(id)
        del fake.routes[:]
        fork = await twin.call(session.fork, f"fork of {id}")
        copy = await twin.call(client.restore, blob, model="sum", id=f"copy of {id}")
        assert fake.routes == [("ForkSession", key(id)), ("RestoreSession", key(copy.id))]
        assert (await twin.call(fork.step, ones()))[0] == (await twin.call(copy.step, ones()))[0] == 2
        await twin.call(session.reset)
        assert (await twin.call(session.step, ones()))[0] == 1
    assert fake.streams == len(set(fake.opened.values())) == SHARDS
    # What balances connections spreads shards too.
    assert len(fake.peers) == SHARDS
    assert all(route == key(id) for id, route in fake.opened.items())
    del fake.routes[:]
    await twin.call(client.predict, "double", ones(1))
    await twin.collect(client.list_sessions)
    assert {route for _, route in fake.routes} == {"fleet-0"}


async def test_a_session_that_another_server_has_is_claimed_by_its_own_shard(
    connect: Connect, twin: Twin, fake: Fake
) -> None:
    client = await connect()
    for id in one_of_each():
        session = await twin.call(client.session, "sum", id)
        await twin.call(session.step, ones())
        fake.opened.clear()
        fake.not_owner = 1
        await twin.call(session.snapshot)
        assert fake.opened == {id: key(id)}


async def test_another_client_with_the_key_finds_sessions_at_the_same_shard(
    connect: Connect, twin: Twin, fake: Fake
) -> None:
    ids = one_of_each()
    first = await connect()
    pool = await twin.call(first.sessions, "sum", ids=ids)
    await twin.call(pool.step, ones(SHARDS))
    before = dict(fake.opened)
    await twin.call(first.close)
    second = await connect()
    for id in ids:
        session = await twin.call(second.session, "sum", id, mode="resume")
        assert session.position == 1
    assert fake.opened == before


async def test_a_pool_over_shards_is_a_pool(connect: Connect, twin: Twin, fake: Fake) -> None:
    client = await connect()
    ids = [f"s{n}" for n in range(40)]
    initial = {"h": np.arange(80, dtype=np.float32).reshape(40, FEATURES)}
    pool = await twin.call(client.sessions, "sum", ids=ids)
    assert all(fake.opened[id] == key(id) for id in ids)
    x = np.random.default_rng(0).integers(0, 9, (40, 3, FEATURES)).astype(np.float32)
    assert (await twin.call(pool.step, x) == x.cumsum(1)).all()
    some = np.random.default_rng(1).permutation(40)[:17]
    y = await twin.call(pool.step, x[some, 0], rows=some)
    assert (y == x[some].sum(1) + x[some, 0]).all()
    assert pool.positions.tolist() == [3 + (n in some) for n in range(40)]
    lengths = np.arange(40) % 3
    y = await twin.call(pool.step, ones(40, 2), lengths=lengths)
    assert [int((row[:, 0] > 0).sum()) for row in y] == lengths.tolist()
    bad = ones(40)
    bad[[3, 8, 21]] = np.nan
    with pytest.raises(statestream.PoolError) as caught:
        await twin.call(pool.step, bad)
    assert sorted(caught.value.errors) == [3, 8, 21]
    assert isinstance(caught.value.outputs, np.ndarray)
    failed = np.isin(np.arange(40), [3, 8, 21])
    assert (caught.value.outputs[failed] == 0).all()
    assert (caught.value.outputs[~failed] > 0).all()
    with pytest.raises(ValueError, match="twice"):
        await twin.call(pool.step, ones(2), rows=[1, 1])
    with pytest.raises(ValueError, match="twice"):
        await twin.call(pool.step, ones(2), rows=[39, -1])
    assert (await twin.call(pool.flush)).tolist() == pool.positions.tolist() == pool.durable_positions.tolist()
    last = pool.positions
    await twin.call(pool.close)
    assert pool.positions.tolist() == last.tolist()
    assert len(fake.world.rows) == 40
    anonymous = await twin.call(client.sessions, "sum", 12, initial_state={"h": initial["h"][:12]})
    assert (await twin.call(anonymous.step, ones(12)) == initial["h"][:12] + 1).all()
    await twin.call(anonymous.close)
    assert len(fake.world.rows) == 40


async def test_all_shards_of_a_step_are_under_way_at_once(connect: Connect, twin: Twin, fake: Fake) -> None:
    pool = await twin.call((await connect()).sessions, "sum", ids=one_of_each())
    fake.gate.clear()
    step = asyncio.create_task(twin.call(pool.step, ones(SHARDS)))
    async with asyncio.timeout(20):
        while fake.waiting < SHARDS:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    fake.gate.set()
    assert (await step == 1).all()


async def test_a_pool_that_cannot_open_in_one_shard_lets_go_of_the_others(
    connect: Connect, twin: Twin, fake: Fake
) -> None:
    client, ids = await connect(), one_of_each()
    await twin.call(client.session, "sum", ids[2])
    with pytest.raises(statestream.PoolError) as caught:
        await twin.call(client.sessions, "sum", ids=ids, mode="create")
    assert list(caught.value.errors) == [2]
    assert isinstance(caught.value.errors[2], errors.SessionExists)
    again = await twin.call(client.sessions, "sum", ids=[id for id in ids if id != ids[2]], mode="resume")
    assert (await twin.call(again.step, ones(3)) == 1).all()


async def test_outputs_that_nobody_acknowledged_come_again_by_row(connect: Connect, twin: Twin, fake: Fake) -> None:
    ids = one_of_each()
    first = await connect(replay_seconds=0.001)
    pool = await twin.call(first.sessions, "sum", ids=ids)
    await twin.call(pool.step, np.arange(8, dtype=np.float32).reshape(4, 2))
    second = await connect()
    again = await twin.call(second.sessions, "sum", ids=ids, return_replies=True)
    assert {row: [y[0].tolist() for _, y in replies] for row, replies in again.replies.items()} == {
        row: [[2.0 * row, 2.0 * row + 1]] for row in range(4)
    }


async def test_every_shard_connects_again_and_says_so(connect: Connect, twin: Twin, fake: Fake) -> None:
    heard: list[str] = []
    client = await connect(on_reconnect=heard.append)
    pool = await twin.call(client.sessions, "sum", ids=[f"s{n}" for n in range(20)])
    await twin.call(pool.step, ones(20))
    await asyncio.to_thread(fake.restart)
    assert (await twin.call(pool.step, ones(20)) == 2).all()
    assert heard == [fake.address] * SHARDS
    assert all(route == key(id) for id, route in fake.opened.items())


async def test_a_shard_that_reaches_no_server_fails_alone_and_says_which(twin: Twin, fake: Fake) -> None:
    other = Fake(World(max_steps=16, window=64))
    settings = Settings(shards=2, route_key="fleet", retry_timeout=0.5, replay_seconds=0.1)
    ids = sorted((id for id in map(str, range(20))), key=lambda id: shard_of("sum", id, 2))[5:15]
    of = [shard_of("sum", id, 2) for id in ids]
    assert sorted(set(of)) == [0, 1]
    # A proxy stands for both; here each shard has a server of its own and no other to go to.
    client = await twin.connect(f"{fake.address},{other.address}", settings=settings)
    for link in client._shards.links:
        link.state._backoff.addresses = link.state._backoff.addresses[:1]
    try:
        pool = await twin.call(client.sessions, "sum", ids=ids)
        await twin.call(pool.step, ones(10))
        assert set(fake.world.rows) == {id for id, shard in zip(ids, of, strict=True) if not shard}
        await asyncio.to_thread(other.stop)
        with pytest.raises(statestream.PoolError) as caught:
            await twin.call(pool.step, ones(10))
        assert sorted(caught.value.errors) == [row for row, shard in enumerate(of) if shard]
        for error in caught.value.errors.values():
            assert isinstance(error, errors.ServerUnavailable)
            assert "shard 1 of 2, counted from 0; route key 'fleet-1'" in error.message
        assert isinstance(caught.value.outputs, np.ndarray)
        assert caught.value.outputs[:, 0].tolist() == [0 if shard else 2 for shard in of]
        with pytest.raises(statestream.PoolError) as caught:
            await twin.call(pool.flush)
        assert sorted(caught.value.errors) == [row for row, shard in enumerate(of) if shard]
        await asyncio.to_thread(other.start)
        fresh = await twin.call(client.session, "sum", ids[of.index(1)])
        assert (await twin.call(fresh.step, ones()))[0] >= 2
    finally:
        await twin.call(client.close)
        other.stop()


async def test_nothing_there_says_which_shard_and_leaves_none_connected(twin: Twin, fake: Fake) -> None:
    with pytest.raises(errors.ServerUnavailable, match=r"shard 0 of 2, counted from 0"):
        await twin.connect("localhost:1", settings=Settings(shards=2, connect_timeout=0.3))
    assert "statestream" not in {task.get_name() for task in asyncio.all_tasks()}
    assert "statestream" not in {thread.name for thread in threading.enumerate()}


async def test_a_cancelled_step_of_a_pool_leaves_no_waiter(fake: Fake) -> None:
    settings = Settings(shards=SHARDS)
    async with statestream.aio.connect(fake.address, settings=settings) as client:
        pool = await client.sessions("sum", ids=one_of_each())
        fake.gate.clear()
        step = asyncio.create_task(pool.step(ones(SHARDS)))
        async with asyncio.timeout(20):
            while fake.waiting < SHARDS:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
        fake.gate.set()
        assert (await pool.step(ones(SHARDS)) == 2).all()


async def test_a_stream_follows_the_calls_that_reach_another_server(connect: Connect, twin: Twin, fake: Fake) -> None:
    client, ids = await connect(), one_of_each()
    sessions = [await twin.call(client.session, "sum", id) for id in ids]
    for n, call in enumerate((sessions[1].snapshot, sessions[1].fork), start=1):
        fake.not_owner = 2  # Also after the session was claimed: the calls go elsewhere than the stream.
        await twin.call(call)
        assert fake.streams == SHARDS + n
    fake.not_owner = 2
    assert len(await twin.collect(sessions[2].forecast, 2)) == 2
    assert fake.streams == SHARDS + 3
    assert [float((await twin.call(session.step, ones()))[0]) for session in sessions] == [1] * SHARDS
    fake.not_owner = 3
    with pytest.raises(errors.NotOwner):
        await twin.call(sessions[3].snapshot)
    # Many that hear it of one stream end it once.
    again = await twin.call(client.sessions, "sum", ids=[f"s{n}" for n in range(8)])
    before, link = fake.streams, client._shards.first
    stream = link.state.streams
    await asyncio.gather(*(twin.call(link.renew, stream) for _ in range(8)))
    assert (await twin.call(again.step, ones(8)) == 1).all()
    assert fake.streams == before + 1
