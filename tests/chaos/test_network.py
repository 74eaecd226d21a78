"""Networks that cut, stall, delay and lose: every chunk is applied exactly once."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import statestream
from tests.chaos import figures
from tests.chaos.cluster import cluster
from tests.chaos.faults import Cut, Delay, Fault, LoseReplies, Scene, Stall, schedule
from tests.chaos.oracle import MODEL, Oracle, inputs
from tests.chaos.proxy import proxies
from tests.chaos.workload import RETRY_SECONDS, verify, workload
from tests.support.calls import Failure, connected
from tests.support.serving import EDGES
from tests.support.speaker import Opened, Refusal, Speaker

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]
Scaled = Callable[[int, int], int]

IMPATIENT = statestream.Settings(retry_timeout=RETRY_SECONDS, connect_timeout=30.0, keepalive=5.0)
"""Pings as often as a server takes; a silent server is given up after 5 to 10 seconds."""


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.service
async def test_cuts_delays_and_lost_replies(
    models: Path, tmp_path: Path, oracle: Oracle, seed: int, scaled: Scaled, edge: str
) -> None:
    async with (
        cluster(models, tmp_path, edge=edge, replicas=2, store="redis") as made,
        proxies(made.addresses) as lines,
        workload(
            [line.address for line in lines], seed=seed, sessions=scaled(200, 30), clients=4, settings=IMPATIENT
        ) as load,
    ):
        scene = Scene(made, load, random.Random(seed), lines)
        await load.progress()
        faults: list[Fault] = [Cut(), Cut(1.0), LoseReplies(), LoseReplies(), Delay(), Stall(1.0)]
        await schedule(scene, faults, scaled(40, 8))
        await load.finish()
        verdict = await verify(load, oracle, made.addresses)
        figures.report(figures.named("chaos-network", edge), figures.summary(scene, verdict))


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.service
async def test_half_open_connections_are_left(
    models: Path, tmp_path: Path, oracle: Oracle, seed: int, scaled: Scaled, edge: str
) -> None:
    """A line falls silent for longer than the clients wait; what they sent into it arrives after they moved."""
    async with (
        cluster(models, tmp_path, edge=edge, replicas=2, store="redis") as made,
        proxies(made.addresses) as lines,
        workload(
            [line.address for line in lines], seed=seed, sessions=scaled(100, 20), clients=4, settings=IMPATIENT
        ) as load,
    ):
        scene = Scene(made, load, random.Random(seed), lines)
        await load.progress()
        line = scene.line()
        scene.mark("half-open", line.address)
        line.stall()
        await load.progress(90)
        line.flow()
        await load.progress()
        await load.finish()
        verdict = await verify(load, oracle, made.addresses)
        figures.report(figures.named("chaos-half-open", edge), figures.summary(scene, verdict))


@pytest.mark.parametrize("edge", EDGES)
async def test_frames_of_an_old_writer_that_arrive_late_change_nothing(
    models: Path, tmp_path: Path, oracle: Oracle, seed: int, edge: str
) -> None:
    async with (
        cluster(models, tmp_path, edge=edge) as made,
        proxies(made.addresses) as (line,),
        connected(line.address) as slow,
        connected(made.addresses[0]) as fast,
        Speaker(slow, MODEL) as old,
        Speaker(fast, MODEL) as new,
    ):
        chunks = [{"x": inputs(seed, 0, start, 4)} for start in range(0, 40, 4)]
        outputs = oracle.outputs(0, 40)
        await old.open_one("late")
        first = await old.step(0, 0, chunks[0])
        assert first.outputs["y"].tobytes() == outputs[:4].tobytes()
        line.stall()
        for number in range(1, 6):
            await old.send_chunk([0], [4 * number], [chunks[number]])
        taken = await new.open_one("late")
        assert isinstance(taken, Opened)
        assert taken.position == 4
        answers = [await new.step(0, 4 * number, chunks[number]) for number in range(1, 6)]
        line.flow()
        await old.unasked(lambda: old.notices)
        late = await old.rows(5)
        reasons = {row.failure.reason for row in late if isinstance(row, Refusal)}
        assert len(reasons) > 0
        assert reasons <= {"SESSION_MOVED", "SESSION_NOT_FOUND"}
        assert not any(not isinstance(row, Refusal) for row in late), "a late frame of an old writer was applied"
        answers += [await new.step(0, 4 * number, chunks[number]) for number in range(6, 10)]
        got = np.concatenate([first.outputs["y"], *(answer.outputs["y"] for answer in answers)])
        assert got.tobytes() == outputs.tobytes()
        again = await old.not_opened("late", incarnation=1)
        assert isinstance(again, Failure)
        assert again.reason == "SESSION_MOVED"
