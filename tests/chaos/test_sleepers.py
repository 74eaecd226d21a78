"""A replica that sleeps through a take-over and wakes: it is fenced, on writes and on replies."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.chaos import figures
from tests.chaos.cluster import cluster
from tests.chaos.faults import Scene
from tests.chaos.oracle import MODEL, Oracle, inputs
from tests.chaos.test_network import IMPATIENT
from tests.chaos.workload import verify, workload
from tests.support.calls import connected
from tests.support.speaker import Answer, Speaker

pytestmark = [pytest.mark.chaos, pytest.mark.service, pytest.mark.timeout(600)]
Scaled = Callable[[int, int], int]


async def test_sleep_through_a_take_over_under_load(
    models: Path, tmp_path: Path, oracle: Oracle, seed: int, scaled: Scaled
) -> None:
    async with (
        cluster(models, tmp_path, replicas=3, store="redis") as made,
        workload(made.addresses, seed=seed, sessions=scaled(300, 30), settings=IMPATIENT) as load,
    ):
        scene = Scene(made, load, random.Random(seed))
        await load.progress()
        for _ in range(scaled(3, 1)):
            replica = scene.victim()
            scene.mark("stop", replica.address)
            replica.stop()
            # Every session goes on elsewhere while it sleeps.
            await load.progress(90)
            replica.wake()
            await load.progress()
        await load.finish()
        verdict = await verify(load, oracle, made.addresses)
        figures.report("chaos-sleep", figures.summary(scene, verdict))


async def test_a_sleeper_answers_nobody_for_sessions_that_moved(
    models: Path, tmp_path: Path, oracle: Oracle, seed: int
) -> None:
    """Frames that reach a sleeping owner are answered with an error once it wakes, and the store has one history."""
    outputs = oracle.outputs(0, 40)
    chunks = [{"x": inputs(seed, 0, start, 4)} for start in range(0, 40, 4)]
    other = {"x": inputs(seed, 1, 4, 4)}
    async with cluster(models, tmp_path, replicas=2, store="redis") as made:
        sleeper, heir = made.replicas
        async with (
            connected(sleeper.address) as there,
            connected(heir.address) as here,
            Speaker(there, MODEL) as old,
            Speaker(here, MODEL) as new,
        ):
            await old.open_one("moving")
            first = await old.step(0, 0, chunks[0])
            await old.flush(0)
            sleeper.stop()
            await old.send_chunk([0], [4], [other])
            # Longer than two checkpoint intervals: what it knows of the store is old when it wakes.
            await asyncio.sleep(3)
            taken = await new.open_one("moving")
            assert taken.position == 4
            answers = [await new.step(0, 4 * number, chunks[number]) for number in range(1, 6)]
            sleeper.wake()
            await old.unasked(lambda: old.notices)
            assert {notice.failure.reason for notice in old.notices} <= {"SESSION_MOVED", "NOT_OWNER"}
            await old.send_chunk([0], [8], [other])
            late = await old.rows(1)
            assert not any(isinstance(row, Answer) for row in late), "a sleeper answered for a session that had moved"
            await new.flush(0)
            answers += [await new.step(0, 4 * number, chunks[number]) for number in range(6, 10)]
            await new.flush(0)
            got = np.concatenate([first.outputs["y"], *(answer.outputs["y"] for answer in answers)])
            assert got.tobytes() == outputs.tobytes()
        for replica in made.replicas:
            await replica.kill()
        await sleeper.start()
        async with connected(sleeper.address) as channel, Speaker(channel, MODEL) as reader:
            assert (await reader.open_one("moving")).position == 40
            last = await reader.step(0, 40, {"x": inputs(seed, 0, 40, 4)})
            assert last.outputs["y"].tobytes() == oracle.outputs(0, 44)[40:].tobytes()
