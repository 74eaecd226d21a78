"""A Redis Cluster of three as the store: servers and nodes are killed; a node fails over, with and without losses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest

import statestream
from statestream import errors
from statestream_server.stores.base import TENANT, Key
from statestream_server.stores.redis import RedisStore
from tests.chaos import figures
from tests.chaos.cluster import Cluster, cluster
from tests.chaos.faults import Scene
from tests.chaos.oracle import MODEL, Oracle, Track, inputs
from tests.chaos.redis_nodes import Node, RedisNodes
from tests.chaos.workload import verify, workload
from tests.server.stores.redis_server import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.service, pytest.mark.timeout(600)]
Scaled = Callable[[int, int], int]


@pytest.mark.parametrize("full_coverage", [True, False], ids=["all-or-nothing", "partial"])
async def test_servers_and_cluster_nodes_are_killed(
    models: Path, tmp_path: Path, oracle: Oracle, seed: int, scaled: Scaled, full_coverage: bool
) -> None:
    """Three primaries without replicas: while one is gone its slots are, and with full coverage all others too."""
    async with (
        cluster(models, tmp_path, replicas=3, store=RedisNodes(tmp_path, full_coverage=full_coverage)) as made,
        workload(made.addresses, seed=seed, sessions=scaled(300, 40)) as load,
    ):
        scene = Scene(made, load, random.Random(seed))
        await load.saved()
        for number in range(scaled(9, 3)):
            node = made.nodes.nodes[number % 3]
            scene.mark("node down")
            await asyncio.to_thread(node.kill)
            await load.progress()  # service goes on while the store is away
            if number % 3 == 1:
                await _kill_server(scene, back=node)
            else:
                await _back(made, node)
            await load.saved()
            await _kill_server(scene)
        await load.finish()
        verdict = await verify(load, oracle, made.addresses)
        name = f"chaos-cluster-{'all' if full_coverage else 'partial'}"
        figures.report(name, figures.summary(scene, verdict, "kill"))
        figures.picture(name, "3 replicas, Redis Cluster of 3: replicas and nodes are killed", scene)


async def _back(made: Cluster, node: Node) -> None:
    await asyncio.to_thread(node.start)
    await asyncio.to_thread(made.nodes.wait_whole)


async def _kill_server(scene: Scene, back: Node | None = None) -> None:
    """Kills a replica, with a node of the store still gone where `back` is one that comes back then."""
    victim = scene.victim()
    scene.mark("kill", victim.address)
    await victim.kill()
    if back is not None:
        await _back(scene.cluster, back)
    await victim.start()
    await scene.load.progress()


@pytest.mark.parametrize("durability", ["interval", "sync"])
async def test_a_failover_loses_nothing_that_waited_for_a_replica(
    models: Path, tmp_path: Path, oracle: Oracle, seed: int, scaled: Scaled, durability: str
) -> None:
    """With `?wait=1` a save counts once a replica has it: every primary is killed for good, and servers behind them."""
    store = RedisNodes(tmp_path, replicas=1, wait=1)
    async with (
        cluster(models, tmp_path, "--durability", durability, replicas=2, store=store) as made,
        workload(made.addresses, seed=seed, sessions=scaled(200, 30), clients=4) as load,
    ):
        scene = Scene(made, load, random.Random(seed))
        await load.saved()
        for node in made.nodes.nodes[: scaled(3, 2)]:
            heir = await asyncio.to_thread(made.nodes.replica_of, node)
            scene.mark("failover")
            await asyncio.to_thread(node.kill)
            victim = scene.victim()
            scene.mark("kill", victim.address)
            await victim.kill()
            await asyncio.to_thread(made.nodes.succeed, heir, node)
            await _back(made, node)  # it follows its heir now, so that writes have a replica again
            await victim.start()
            await load.progress()
            await load.saved()
        await load.finish()
        verdict = await verify(load, oracle, made.addresses)
        figures.report(f"chaos-failover-{durability}", figures.summary(scene, verdict, "failover"))


@pytest.mark.parametrize("owner", ["lives", "is killed"])
async def test_a_failover_that_lost_saves_is_noticed(
    models: Path, tmp_path: Path, oracle: Oracle, seed: int, owner: str
) -> None:
    """Without `wait` a replica that was behind may take over: the record of a session is an earlier one then.

    A server that lives saves such sessions again. Where it is gone too, callers that still have the inputs send them
    again; the others hear STATE_LOST, which says from where on; nobody gets a wrong output.
    """
    forgets = statestream.Settings(retry_timeout=60, replay_seconds=0.0)
    keeps = statestream.Settings(retry_timeout=60, replay_seconds=60.0)
    async with (
        cluster(models, tmp_path, replicas=2, store=RedisNodes(tmp_path, replicas=1)) as made,
        statestream.aio.connect(",".join(made.addresses), settings=forgets) as forgetful,
        statestream.aio.connect(",".join(made.addresses), settings=keeps) as patient,
    ):
        tracks = [Track(number, f"s{number}") for number in range(40)]
        sessions = [await (forgetful if t.number % 2 else patient).session(MODEL, id=t.id) for t in tracks]
        primary = made.nodes.nodes[0]
        heir = made.nodes.replica_of(primary)
        await _save(tracks, sessions, seed)
        await asyncio.to_thread(wait_until, lambda: _lag(primary, heir) == 0, "the replica has all")
        heir.sleep()
        primary.client.client_kill_filter(_type="replica")
        await _save(tracks, sessions, seed)
        if owner == "is killed":
            await made.replicas[0].kill()
        primary.kill()
        heir.wake()
        await asyncio.to_thread(made.nodes.succeed, heir, primary)
        if owner == "lives":
            await _all_are_saved_again(tracks, made)
            await made.replicas[0].kill()
        lost = list[Track]()
        for track, session in zip(tracks, sessions, strict=True):
            found = await _stepped(track, session, seed)
            if found is not None:
                assert (track.id in found.message, found.metadata["position"]) == (True, "4"), found
                lost.append(track)
        if owner == "lives":
            assert lost == []
        else:
            assert lost, "the failover lost nothing"
            assert all(track.number % 2 for track in lost), "who has the inputs still loses nothing"
        oracle.check(tracks)
        kept = len(tracks) - len(lost)
        assert sum(track.position for track in tracks) == 12 * kept + 8 * len(lost)


async def _stepped(track: Track, session: statestream.aio.Session, seed: int) -> errors.StateLost | None:
    """Four more steps, or that they cannot be made any more."""
    try:
        track.took(await session.step(inputs(seed, track.number, track.position, 4)), 0.0)
    except errors.StateLost as error:
        return error
    return None


async def _save(tracks: list[Track], sessions: list[statestream.aio.Session], seed: int) -> None:
    """Four more steps of each, saved."""
    for track, session in zip(tracks, sessions, strict=True):
        track.took(await session.step(inputs(seed, track.number, track.position, 4)), 0.0)
    for session in sessions:
        await session.flush()


def _lag(primary: Node, replica: Node) -> int:
    """Bytes that a replica does not have yet."""
    there, here = primary.client.info("replication"), replica.client.info("replication")
    return int(there["master_repl_offset"]) - int(here["slave_repl_offset"])


async def _all_are_saved_again(tracks: list[Track], made: Cluster) -> None:
    store = RedisStore(f"redis://127.0.0.1:{made.nodes.nodes[1].port}/0")
    await store.start()
    try:
        async with asyncio.timeout(30):
            while True:
                heads = await store.heads([Key(TENANT, MODEL, track.id) for track in tracks])
                if all(head and head.position == 8 for head in heads):
                    return
                await asyncio.sleep(0.1)
    finally:
        await store.close()
