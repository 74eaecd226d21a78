"""SIGKILL under load: no step is lost, none is applied twice, and the pause is short."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos import figures
from tests.chaos.cluster import cluster
from tests.chaos.faults import Drain, Kill, Scene, schedule
from tests.chaos.oracle import Oracle
from tests.chaos.workload import verify, workload
from tests.support.serving import EDGES

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]
Scaled = Callable[[int, int], int]


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.service
async def test_three_replicas_over_redis(
    models: Path, tmp_path: Path, oracle: Oracle, seed: int, scaled: Scaled, edge: str
) -> None:
    async with (
        cluster(models, tmp_path, edge=edge, replicas=3, store="redis") as made,
        workload(made.addresses, seed=seed, sessions=scaled(1000, 60)) as load,
    ):
        scene = Scene(made, load, random.Random(seed))
        await load.progress()
        await schedule(scene, [Kill()], scaled(30, 4))
        await load.finish()
        verdict = await verify(load, oracle, made.addresses)
        found = figures.summary(scene, verdict, "kill")
        figures.report(figures.named("chaos-redis-kills", edge), found)
        figures.picture(figures.named("chaos-redis-kills", edge), "3 replicas, Redis: a random one is killed", scene)
        assert len(scene.marks) == scaled(30, 4)


@pytest.mark.parametrize("edge", EDGES)
async def test_one_replica_over_sqlite(
    models: Path, tmp_path: Path, oracle: Oracle, seed: int, scaled: Scaled, edge: str
) -> None:
    async with (
        cluster(models, tmp_path, edge=edge) as made,
        workload(made.addresses, seed=seed, sessions=scaled(1000, 60)) as load,
    ):
        scene = Scene(made, load, random.Random(seed))
        await load.progress()
        await schedule(scene, [Kill(alone=True)], scaled(30, 4))
        await load.finish()
        verdict = await verify(load, oracle, made.addresses)
        found = figures.summary(scene, verdict, "kill")
        figures.report(figures.named("chaos-sqlite-kills", edge), found)
        figures.picture(
            figures.named("chaos-sqlite-kills", edge), "1 replica, sqlite: it is killed and started again", scene
        )
        assert len(scene.marks) == scaled(30, 4)


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.service
async def test_drains_lose_nothing_and_pause_below_a_second(
    models: Path, tmp_path: Path, oracle: Oracle, seed: int, scaled: Scaled, edge: str
) -> None:
    async with (
        cluster(models, tmp_path, edge=edge, replicas=2, store="redis") as made,
        workload(made.addresses, seed=seed, sessions=scaled(200, 40)) as load,
    ):
        scene = Scene(made, load, random.Random(seed))
        await load.progress()
        await schedule(scene, [Drain()], scaled(8, 2))
        await load.finish()
        verdict = await verify(load, oracle, made.addresses)
        found = figures.summary(scene, verdict, "drain")
        figures.report(figures.named("chaos-drains", edge), found)
        figures.picture(figures.named("chaos-drains", edge), "2 replicas, Redis: one leaves by SIGTERM", scene)
