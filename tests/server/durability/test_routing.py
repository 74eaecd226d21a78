"""One client's shards on several servers: behind a real HAProxy that hashes on the route key, and on workers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import statestream
from statestream import errors
from statestream.settings import Settings
from tests.client.twins import Aio, Sync, Twin
from tests.server.stores.redis_server import redis_server
from tests.support.haproxy import haproxy
from tests.support.serving import Process, process, processes

MODEL, SHARDS, SESSIONS = "counter", 4, 24
SETTINGS = Settings(shards=SHARDS, route_key="fleet")
OPTIONS = ("--checkpoint-interval", "0.2", "--log-level", "warning")


@dataclass
class Fleet:
    """Replicas, and the proxy in front of them."""

    replicas: list[Process]
    address: str

    def resident(self) -> list[set[str]]:
        """The sessions that each replica has in memory."""
        found = []
        for replica in self.replicas:
            with statestream.connect(replica.address) as client:
                found.append({one.id for one in client.list_sessions(MODEL) if one.residence == "resident"})
        return found


@pytest.fixture
def fleet(models_dir: Path, tmp_path: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(tmp_path))
        replicas = stack.enter_context(processes(models_dir, "--store", redis.url, *OPTIONS, count=2))
        yield Fleet(replicas, stack.enter_context(haproxy(tmp_path, [one.address for one in replicas])))


@pytest.fixture(params=[Sync(), Aio()], ids=lambda twin: twin.name)
def twin(request: pytest.FixtureRequest) -> Twin:
    return request.param


@pytest.fixture
def not_owner(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every NOT_OWNER that this process hears."""
    heard: list[str] = []
    plain = errors.NotOwner.__init__

    def noted(self: errors.NotOwner, message: str, **more: Any) -> None:
        heard.append(message)
        plain(self, message, **more)

    monkeypatch.setattr(errors.NotOwner, "__init__", noted)
    return heard


def ones(*shape: int) -> np.ndarray:
    return np.ones((*shape, 1), np.float32)


async def all_calls(twin: Twin, client: Any, session: Any, at: int) -> None:
    """Every call about a session, of which `at` steps were applied."""
    assert (await twin.call(session.step, ones()))[0] == at + 1
    assert await twin.call(session.flush) == at + 1
    blob = await twin.call(session.snapshot)
    for copy in (
        await twin.call(session.fork),
        await twin.call(session.fork, f"fork of {session.id}"),
        await twin.call(client.restore, blob, model=MODEL, id=f"copy of {session.id}"),
    ):
        assert (await twin.call(copy.step, ones()))[0] == at + 2
        await twin.call(copy.delete)


@pytest.mark.service
async def test_shards_spread_over_replicas_and_every_call_reaches_the_owner(
    fleet: Fleet, twin: Twin, not_owner: list[str]
) -> None:
    ids = [f"s{n}" for n in range(SESSIONS)]
    client = await twin.connect(fleet.address, settings=SETTINGS)
    pool = await twin.call(client.sessions, MODEL, ids=ids)
    assert (await twin.call(pool.step, ones(SESSIONS)) == 1).all()
    one, other = await asyncio.to_thread(fleet.resident)
    assert one
    assert other
    assert one | other == set(ids)
    assert not one & other
    for id in ids:
        session = await twin.call(client.session, MODEL, id, mode="resume")
        await all_calls(twin, client, session, at=1)
        await twin.call(session.close)
    await twin.call(client.close)
    # Another process with the same key finds each session where it is: no epoch of a take-over, no NOT_OWNER.
    client = await twin.connect(fleet.address, settings=SETTINGS)
    pool = await twin.call(client.sessions, MODEL, ids=ids, mode="resume")
    assert (await twin.call(pool.step, ones(SESSIONS)) == 3).all()
    assert await asyncio.to_thread(fleet.resident) == [one, other]
    await twin.call(client.close)
    assert not_owner == []


@pytest.mark.slow
@pytest.mark.service
@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_replica_that_goes_costs_its_shards_a_pause_and_nothing_else(
    fleet: Fleet, twin: Twin, how: str
) -> None:
    ids = [f"s{n}" for n in range(SESSIONS)]
    client = await twin.connect(fleet.address, settings=SETTINGS)
    pool = await twin.call(client.sessions, MODEL, ids=ids)
    assert (await twin.call(pool.step, ones(SESSIONS)) == 1).all()
    gone = fleet.replicas[0]
    assert all(await asyncio.to_thread(fleet.resident))
    going = None
    for step in range(2, 61):
        if step == 20:
            # While steps are under way.
            going = asyncio.create_task(asyncio.to_thread(getattr(gone, how)))
        assert (await twin.call(pool.step, ones(SESSIONS)) == step).all()
    assert going is not None
    await going
    assert (await twin.call(pool.flush) == 60).all()
    session = await twin.call(client.session, MODEL, ids[0])
    await all_calls(twin, client, session, at=60)
    await twin.call(session.close)
    # It comes back, and has its share of the keys again: streams that stayed away follow the calls.
    await asyncio.to_thread(gone.start)
    for id in ids[1:]:
        session = await twin.call(client.session, MODEL, id)
        await all_calls(twin, client, session, at=60)
        await twin.call(session.close)
    await twin.call(client.close)
    client = await twin.connect(fleet.address, settings=SETTINGS)
    pool = await twin.call(client.sessions, MODEL, ids=ids, mode="resume")
    assert (await twin.call(pool.step, ones(SESSIONS)) == 62).all()
    await twin.call(client.close)


@pytest.mark.slow
async def test_shards_spread_over_workers(models_dir: Path, tmp_path: Path, twin: Twin) -> None:
    """The kernel spreads connections at random: that 16 of them meet at one of two workers happens once in 32,768."""
    with process(models_dir, "--store", f"sqlite:{tmp_path / 'sessions.db'}", "--workers", "2", *OPTIONS) as server:
        # Each worker says so; before, all connections go to the first.
        await asyncio.to_thread(server.wait_for, r"(?s)ready: gRPC.*ready: gRPC")
        client = await twin.connect(server.address, settings=Settings(shards=16))
        assert len({link.state.info.server_id for link in client._shards.links}) == 2
        pool = await twin.call(client.sessions, MODEL, ids=[f"s{n}" for n in range(SESSIONS)])
        assert (await twin.call(pool.step, ones(SESSIONS)) == 1).all()
        for id in pool.ids:
            session = await twin.call(client.session, MODEL, id)
            await all_calls(twin, client, session, at=1)
            await twin.call(session.close)
        await twin.call(client.close)
        assert await asyncio.to_thread(server.stop) == 0
