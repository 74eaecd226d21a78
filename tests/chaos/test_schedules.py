"""Random schedules of every fault: order, atomic commits and durability hold."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos import figures
from tests.chaos.cluster import cluster
from tests.chaos.faults import (
    Both,
    Cut,
    Delay,
    Drain,
    Fault,
    Kill,
    LoseReplies,
    Move,
    RedisFlush,
    RedisOutage,
    Scene,
    Sleep,
    Stall,
    schedule,
)
from tests.chaos.oracle import Oracle, write_model
from tests.chaos.proxy import proxies
from tests.chaos.test_network import IMPATIENT
from tests.chaos.workload import verify, workload

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]
Scaled = Callable[[int, int], int]

NETWORK: list[Fault] = [Cut(), Cut(0.5), LoseReplies(), Stall(1.0), Delay()]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two versions, between which sessions move."""
    return write_model(tmp_path / "models", versions=2)


@pytest.mark.service
async def test_three_replicas_redis_and_the_network(
    models: Path, tmp_path: Path, oracle: Oracle, seed: int, scaled: Scaled
) -> None:
    faults = [
        *NETWORK,
        Kill(),
        Kill(),
        Drain(),
        Sleep(0.5),
        Sleep(3.0),
        RedisOutage(0.5),
        RedisOutage(2.0),
        RedisFlush(),
        Move(),
        Both(Move(), Kill()),
        Both(Move(), Drain()),
        Both(Move(), RedisOutage(0.5)),
    ]
    async with (
        cluster(models, tmp_path, replicas=3, store="redis") as made,
        proxies(made.addresses) as lines,
        workload([line.address for line in lines], seed=seed, sessions=scaled(200, 30), settings=IMPATIENT) as load,
    ):
        scene = Scene(made, load, random.Random(seed), lines)
        await load.progress()
        await schedule(scene, faults, scaled(60, 10), beside=NETWORK)
        await load.finish()
        verdict = await verify(load, oracle, made.addresses)
        figures.report("chaos-random-redis", figures.summary(scene, verdict))
        figures.picture("chaos-random-redis", "3 replicas, Redis, a network: faults at random", scene)


async def test_one_replica_sqlite_and_the_network(
    models: Path, tmp_path: Path, oracle: Oracle, seed: int, scaled: Scaled
) -> None:
    killed = Kill(alone=True)
    faults = [*NETWORK, killed, killed, Drain(), Sleep(0.5), Move(), Both(Move(), killed), Both(Move(), Drain())]
    async with (
        cluster(models, tmp_path) as made,
        proxies(made.addresses) as lines,
        workload(
            [line.address for line in lines], seed=seed, sessions=scaled(200, 30), clients=3, settings=IMPATIENT
        ) as load,
    ):
        scene = Scene(made, load, random.Random(seed), lines)
        await load.progress()
        await schedule(scene, faults, scaled(40, 8), beside=NETWORK)
        await load.finish()
        verdict = await verify(load, oracle, made.addresses)
        figures.report("chaos-random-sqlite", figures.summary(scene, verdict))
