"""docker-compose.yml under load: what happens to its containers costs 500 sessions a pause, and no step.

Every output is compared, bit by bit, with ONNX Runtime alone (tests/chaos/oracle.py), through the proxy on the host.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.chaos import figures
from tests.chaos.faults import Mark
from tests.chaos.oracle import Oracle, write_model
from tests.chaos.workload import Workload, verify, workload
from tests.compose.engine import Deployment, free_ports, readable, require_engine, run, volumes
from tests.support.pages import run_by

pytestmark = [pytest.mark.compose, pytest.mark.timeout(600)]

SESSIONS, CLIENTS = 500, 50
THINK_SECONDS = 0.2
"""Between two operations of a session: some 4,000 steps a second of all, which leaves processors for what is tested."""
PAUSE_SECONDS = 10.0
"""Far beyond what a session pauses, for 99 of 100 of them: 2 s are wanted, and printed, as speed is never asserted."""
SHARE_SECONDS, LEAST_SHARE = 60.0, 0.15
"""When a replica that was added must have its share: a third but for the chance by which keys are spread."""
SEED = 12
TEST = "tests/compose/test_replicas.py::test_500_sessions_lose_nothing_whatever_happens_to_the_containers"


class Replicas:
    """The containers that serve, and what is done to them while the sessions step."""

    def __init__(self, deployment: Deployment, load: Workload) -> None:
        self._deployment = deployment
        self._load = load
        self.marks: list[Mark] = []

    async def suffer(self, what: str, do: Callable[[], object]) -> None:
        """Does something to them, then waits until every session has gone on and the replicas are well."""
        self.marks.append(Mark(time.monotonic(), what))
        await asyncio.to_thread(do)
        await self._load.progress()
        await asyncio.to_thread(self._deployment.wait_healthy)
        await asyncio.sleep(2)  # The proxy looks four times a second.

    def pauses(self) -> dict[str, dict[str, float]]:
        """By what was done: how long sessions paused, p50, p99 and the longest, in seconds."""
        found: dict[str, list[np.ndarray]] = {}
        for index, mark in enumerate(self.marks):
            found.setdefault(mark.what, []).append(figures.pauses(self._load, self.marks, index))
        every = {what: np.concatenate(each) for what, each in found.items()}
        every["all"] = np.concatenate([*every.values()])
        return {
            what: {"p50": _quantile(each, 0.5), "p99": _quantile(each, 0.99), "most": _quantile(each, 1.0)}
            for what, each in every.items()
        }


def _quantile(seconds: np.ndarray, part: float) -> float:
    return round(float(np.quantile(seconds, part)), 3)


def held(container: str) -> int:
    """How many sessions the clients of a replica have there."""
    ask = "import urllib.request as u; print(u.urlopen('http://localhost:8002/metrics').read().decode())"
    text = run("docker", "exec", container, "python", "-c", ask)
    (line,) = [line for line in text.splitlines() if line.startswith("statestream_handles ")]
    return round(float(line.split()[1]))


class Deployed(NamedTuple):
    """The deployment, the address that it is reached at, and the models that it serves."""

    deployment: Deployment
    address: str
    models: Path


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Deployed]:
    require_engine()
    models = write_model(tmp_path / "models")
    readable(models)
    port, before = free_ports(1)[0], volumes()
    settings = {"MODELS": str(models), "STATESTREAM_PORT": str(port), "COMPOSE_HTTP_TIMEOUT": "120"}
    deployment = Deployment(f"statestream-test-{port}", settings)
    try:
        deployment.compose("up", "--detach", "--build", timeout=400)
        yield Deployed(deployment, f"127.0.0.1:{port}", models)
    finally:
        deployment.compose("down", "--volumes", "--timeout", "30")
    assert deployment.left() == []
    assert volumes() <= before


async def test_500_sessions_lose_nothing_whatever_happens_to_the_containers(deployed: Deployed) -> None:
    deployment, address, models = deployed
    await asyncio.to_thread(deployment.wait_healthy)
    oracle = Oracle(models, SEED)
    async with workload([address], seed=SEED, sessions=SESSIONS, clients=CLIENTS, think=THINK_SECONDS) as load:
        replicas = Replicas(deployment, load)
        await load.progress()
        first, second = deployment.containers()
        for container in (first, second):
            await replicas.suffer("restart", partial(run, "docker", "restart", "--time", "30", container))
        for container in (second, first):
            await replicas.suffer("kill", partial(_killed, container))
        await replicas.suffer("redis", lambda: deployment.compose("restart", "redis"))
        share = await joined(replicas, deployment, load)
        await load.finish()
        paused = replicas.pauses()
        verdict = await verify(load, oracle, [address])
    figures_ = {"outputs": verdict.outputs, "lost": verdict.lost, "repeated": verdict.repeated, "share": share}
    print(json.dumps({"sessions": SESSIONS, **figures_, "pauses": paused, "load_average": os.getloadavg()[0]}))
    assert (verdict.lost, verdict.repeated) == (0, 0)
    assert verdict.outputs > 100 * SESSIONS
    assert paused["all"]["p99"] <= PAUSE_SECONDS, paused


def _killed(container: str) -> None:
    run("docker", "kill", "--signal", "KILL", container)
    run("docker", "start", container)


async def joined(replicas: Replicas, deployment: Deployment, load: Workload) -> float:
    """Adds a replica; returns the share of all sessions that it has once it has enough of them."""
    known = set(deployment.containers())
    (command,) = run_by("docs/deploy.md", TEST).commands()
    add = command.removeprefix("docker compose ").split()
    await replicas.suffer("join", lambda: deployment.compose(*add))
    (newcomer,) = set(deployment.containers()) - known
    deadline, share = replicas.marks[-1].at + SHARE_SECONDS, 0.0
    while share < LEAST_SHARE:
        assert time.monotonic() < deadline, f"a replica has {share:.0%} of the sessions a minute after it was added"
        await asyncio.sleep(1)
        share = await asyncio.to_thread(held, newcomer) / SESSIONS
    await load.progress()
    return share
