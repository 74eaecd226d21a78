"""Stores that go away, forget or are damaged: service goes on as the mode says, nothing is lost in silence."""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

import statestream
from statestream import errors
from tests.chaos import figures
from tests.chaos.cluster import Cluster, cluster
from tests.chaos.faults import Scene
from tests.chaos.oracle import MODEL, Oracle, Track, inputs
from tests.chaos.workload import verify, workload
from tests.support.serving import Process, launched

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]
Scaled = Callable[[int, int], int]


@pytest.mark.service
async def test_redis_is_gone_for_ten_seconds(
    models: Path, tmp_path: Path, oracle: Oracle, seed: int, scaled: Scaled
) -> None:
    async with (
        cluster(models, tmp_path, replicas=2, store="redis") as made,
        workload(made.addresses, seed=seed, sessions=scaled(200, 30), clients=4) as load,
    ):
        scene = Scene(made, load, random.Random(seed))
        await load.saved()
        scene.mark("redis down")
        await asyncio.to_thread(made.redis.stop)
        await asyncio.sleep(2)  # a save that was under way has come to its end, and callers were told
        before, steps = [session.durable_position for session in load.sessions], load.steps
        await asyncio.sleep(8)
        during = [session.durable_position for session in load.sessions]
        assert during == before, "durable positions rose while the store was gone"
        assert load.steps > steps, "service stood still while the store was gone"
        await load.progress()
        await asyncio.to_thread(made.redis.start)
        scene.mark("redis back")
        await load.saved()
        victim = scene.victim()
        scene.mark("kill", victim.address)
        await victim.kill()
        await load.progress()
        await victim.start()
        await load.finish()
        verdict = await verify(load, oracle, made.addresses)
        figures.report("chaos-redis-outage", figures.summary(scene, verdict))
        figures.picture("chaos-redis-outage", "2 replicas: Redis is gone for 10 s, then one is killed", scene)


@pytest.mark.service
async def test_redis_forgets_and_live_rows_register_again(
    models: Path, tmp_path: Path, oracle: Oracle, seed: int, scaled: Scaled
) -> None:
    """Sessions that step and sessions that rest: all are in the store again, and survive their owner's kill."""
    async with (
        cluster(models, tmp_path, replicas=2, store="redis") as made,
        statestream.aio.connect(made.addresses[0]) as client,
        workload(made.addresses, seed=seed, sessions=scaled(200, 30), clients=4) as load,
    ):
        scene = Scene(made, load, random.Random(seed))
        resting = [Track(10_000 + number, f"resting-{number}") for number in range(20)]
        pool = await client.sessions(MODEL, ids=[track.id for track in resting])
        x = np.stack([inputs(seed, track.number, 0, 8) for track in resting])
        for track, y in zip(resting, await pool.step(x), strict=True):
            track.took(y, 0.0)
        await pool.flush()
        await client.close()
        await load.saved()
        scene.mark("redis flushed")
        await asyncio.to_thread(made.redis.flush)
        await load.saved()
        await _registered(made, len(load.tracks) + len(resting))
        for replica in made.replicas:
            scene.mark("kill", replica.address)
            await replica.kill()
            await replica.start()
            await load.progress()
        await load.finish()
        verdict = await verify(load, oracle, made.addresses)
        async with statestream.aio.connect(made.addresses[0]) as later:
            pool = await later.sessions(MODEL, ids=[track.id for track in resting], mode="resume")
            assert pool.positions.tolist() == [8] * len(resting)
            x = np.stack([inputs(seed, track.number, 8, 8) for track in resting])
            for track, y in zip(resting, await pool.step(x), strict=True):
                track.took(y, 0.0)
        oracle.check(resting)
        figures.report("chaos-redis-flush", figures.summary(scene, verdict))


async def _registered(made: Cluster, count: int) -> None:
    """Waits until a server finds so many sessions, in memory or in the store."""
    async with asyncio.timeout(30), statestream.aio.connect(made.addresses[1]) as client:
        while len([info async for info in client.list_sessions(MODEL)]) < count:  # noqa: ASYNC110 — nobody tells
            await asyncio.sleep(0.1)


@pytest.mark.service
async def test_store_and_owner_both_gone_is_state_lost(models: Path, tmp_path: Path, oracle: Oracle, seed: int) -> None:
    """Callers that can replay everything go on; the others hear STATE_LOST; nobody gets a wrong output."""
    settings = statestream.Settings(retry_timeout=60, replay_seconds=0.0)
    async with (
        cluster(models, tmp_path, store="redis", durable_redis=False) as made,
        statestream.aio.connect(made.addresses[0], settings=settings) as forgetful,
        statestream.aio.connect(made.addresses[0]) as patient,
    ):
        tracks = [Track(number, f"s{number}") for number in range(20)]
        sessions = [await (forgetful if t.number < 10 else patient).session(MODEL, id=t.id) for t in tracks]
        for _ in range(3):
            for track, session in zip(tracks, sessions, strict=True):
                track.took(await session.step(inputs(seed, track.number, track.position, 4)), 0.0)
                await session.flush()
        await made.replicas[0].kill()
        made.redis.stop()
        made.redis.start()
        await made.replicas[0].start()
        for track, session in zip(tracks, sessions, strict=True):
            step = session.step(inputs(seed, track.number, track.position, 4))
            if track.number < 10:
                with pytest.raises(errors.StateLost, match=track.id):
                    await step
            else:
                track.took(await step, 0.0)
        assert oracle.check(tracks) == 10 * 12 + 10 * 16


async def test_full_disk_under_load(models: Path, tmp_path: Path, oracle: Oracle, seed: int, scaled: Scaled) -> None:
    """The server's files may not grow any more: steps go on, durable positions stand still, flush says why."""
    async with (
        cluster(models, tmp_path) as made,
        workload(made.addresses, seed=seed, sessions=scaled(100, 20), clients=2) as load,
    ):
        scene = Scene(made, load, random.Random(seed))
        replica = made.replicas[0]
        await load.saved()
        pid = replica.process.pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        scene.mark("disk full")
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
        await asyncio.to_thread(replica.process.wait_for, "the store cannot be written")
        await load.progress()
        before, steps = [session.durable_position for session in load.sessions], load.steps
        await load.until(lambda: load.steps > steps + 20 * len(load.tracks), "service goes on")
        assert [session.durable_position for session in load.sessions] == before
        with pytest.raises(errors.StoreUnavailable, match=r"sessions\.sqlite"):
            await load.sessions[0].flush()
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
        scene.mark("disk has room")
        await load.saved()
        scene.mark("kill", replica.address)
        await replica.kill()
        await replica.start()
        await load.progress()
        await load.finish()
        verdict = await verify(load, oracle, made.addresses)
        figures.report("chaos-disk-full", figures.summary(scene, verdict))


async def test_full_disk_in_sync_mode_holds_replies_back(
    models: Path, tmp_path: Path, oracle: Oracle, seed: int
) -> None:
    async with (
        cluster(models, tmp_path, "--durability", "sync") as made,
        statestream.aio.connect(made.addresses[0]) as client,
    ):
        replica, track = made.replicas[0], Track(0, "held")
        session = await client.session(MODEL, id=track.id)
        track.took(await session.step(inputs(seed, 0, 0, 4)), 0.0)
        assert session.durable_position == 4
        _, hard = resource.prlimit(replica.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(replica.process.pid, resource.RLIMIT_FSIZE, (0, hard))
        held = asyncio.ensure_future(session.step(inputs(seed, 0, 4, 4)))
        await asyncio.to_thread(replica.process.wait_for, "the store cannot be written")
        assert not held.done(), "a reply left before its step was durable"
        await replica.kill()
        await replica.start()
        track.took(await asyncio.wait_for(held, 30), 0.0)
        assert (session.position, session.durable_position) == (8, 8)
        oracle.check([track])


@contextlib.asynccontextmanager
async def _saved_sessions(made: Cluster, oracle: Oracle, count: int) -> AsyncIterator[list[Track]]:
    """Sessions with eight steps each, in the store; the server is killed."""
    tracks = [Track(number, f"s{number}") for number in range(count)]
    async with statestream.aio.connect(made.addresses[0]) as client:
        pool = await client.sessions(MODEL, ids=[track.id for track in tracks])
        x = np.stack([inputs(oracle.seed, track.number, 0, 8) for track in tracks])
        for track, y in zip(tracks, await pool.step(x), strict=True):
            track.took(y, 0.0)
        await pool.flush()
    await made.replicas[0].kill()
    yield tracks


async def test_a_corrupt_record_is_refused_and_named(models: Path, tmp_path: Path, oracle: Oracle, seed: int) -> None:
    draw = random.Random(seed)
    async with cluster(models, tmp_path) as made, _saved_sessions(made, oracle, 30) as tracks:
        broken = {track.id for track in draw.sample(tracks, 5)}
        assert isinstance(made.store, Path)
        with contextlib.closing(sqlite3.connect(made.store)) as database:
            for name, blob in database.execute("SELECT id, blob FROM session").fetchall():
                if name in broken:
                    spoiled = bytearray(blob)
                    spoiled[draw.randrange(len(blob))] ^= 1 << draw.randrange(8)
                    database.execute("UPDATE session SET blob = ? WHERE id = ?", (bytes(spoiled), name))
            database.commit()
        await made.replicas[0].start()
        async with statestream.aio.connect(made.addresses[0]) as client:
            for track in tracks:
                if track.id in broken:
                    with pytest.raises(errors.StateLost, match=f"'{track.id}'"):
                        await client.session(MODEL, id=track.id)
                    continue
                session = await client.session(MODEL, id=track.id, mode="resume")
                assert session.position == 8
                track.took(await session.step(inputs(seed, track.number, 8, 4)), 0.0)
            assert oracle.check(tracks) == 5 * 8 + 25 * 12
            # Its owner may start it anew, and says so.
            name = min(broken)
            anew = await client.session(MODEL, id=name, mode="replace")
            assert anew.position == 0


@pytest.mark.parametrize("damage", ["header", "middle", "cut"])
async def test_a_damaged_file_is_refused_at_start_or_named(
    models: Path, tmp_path: Path, oracle: Oracle, seed: int, damage: str
) -> None:
    """Either the server refuses the file by its path, or every answer is right or an error that says why."""
    draw = random.Random(seed)
    async with cluster(models, tmp_path) as made, _saved_sessions(made, oracle, 200) as tracks:
        file = made.store
        assert isinstance(file, Path)
        with contextlib.closing(sqlite3.connect(file)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        data = bytearray(file.read_bytes())
        if damage == "cut":
            del data[len(data) // 2 :]
        else:
            start = 0 if damage == "header" else len(data) // 2
            for at in range(start, min(len(data), start + 4096)):
                data[at] = draw.randrange(256)
        file.write_bytes(bytes(data))
        replica = made.replicas[0]
        await asyncio.to_thread(replica.process.launch)
        ready = await asyncio.to_thread(replica.process.wait_for, "ready: gRPC|Error: ")
        assert ready is not None
        if ready[0].startswith("Error"):
            assert await asyncio.to_thread(replica.process.wait) != 0
            assert str(file) in replica.process.output
            return
        async with statestream.aio.connect(made.addresses[0], retry_timeout=2) as client:
            for track in tracks[::20]:
                try:
                    session = await client.session(MODEL, id=track.id, mode="resume")
                except (errors.StoreUnavailable, errors.StateLost):
                    continue
                assert session.position == 8
                track.took(await session.step(inputs(seed, track.number, 8, 4)), 0.0)
        oracle.check(tracks)


async def test_a_place_that_cannot_be_written_is_refused_at_start(models: Path, seed: int) -> None:
    for place in ("/proc/sessions.sqlite", "/dev/full"):
        with launched(Process(models, ["--store", f"sqlite:{place}"])) as server:
            assert await asyncio.to_thread(server.wait) != 0
            assert place in server.output
            assert "Traceback" not in server.output
