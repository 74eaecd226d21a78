"""What stops when, from SIGTERM to the exit: docs/deploy.md tells these times, deployments leave room for them."""

from __future__ import annotations

import asyncio
import re
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from statestream.v1 import inference_pb2 as pb
from statestream_server import app
from statestream_server.settings import Settings
from tests.deploy.manifests import KUBERNETES, ROOT, Object, build, containers, pod
from tests.server.stores.redis_server import free_port, redis_server
from tests.support import models
from tests.support.arrays import u32
from tests.support.calls import DEADLINE, connected
from tests.support.serving import process
from tests.support.speaker import Speaker

ONE = {"x": np.ones((2, 1), np.float32)}
UNIT = ROOT / "deploy" / "systemd" / "statestream.service"
SAVE = app._LEAVE_SECONDS
"""For a checkpoint before clients are told, and again for them to leave."""
LEAVE = 5.0
"""After the drain: two seconds for the store to answer a goodbye (timeout_ms of its URL), then the process ends."""
BUSY = 3.0
"""What a busy machine may add to a time."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write(tmp_path_factory.mktemp("models"), "counter")


def probe(port: int, page: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


async def test_what_stops_when(folder: Path, tmp_path: Path) -> None:
    """Probes say no at once; who is there is told, and served until its stream ends; then all of it is saved."""
    http = free_port()
    options = ["--store", f"sqlite:{tmp_path / 'sessions.db'}", "--checkpoint-interval", "600", "--drain-grace", "8"]
    with process(folder, *options, "--http", "--http-port", str(http)) as server:
        async with (
            connected(server.address) as channel,
            Speaker(channel, "counter") as speaker,
            Speaker(channel, "counter") as late,
        ):
            await speaker.open_one("a")
            await speaker.step(0, 0, ONE)
            health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
            assert await asyncio.to_thread(probe, http, "readyz") == 200
            began = time.monotonic()
            server.signal(signal.SIGTERM)
            async with asyncio.timeout(DEADLINE):
                assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert time.monotonic() - began < BUSY
            assert await asyncio.to_thread(probe, http, "readyz") == 503
            assert await asyncio.to_thread(probe, http, "healthz") == 200
            await late.send(
                open=pb.OpenFrame(model="counter", handles=u32(0), ids=["b"], writer=late.writer, incarnation=1)
            )
            assert (await late.refused()).reason == "DRAINING"
            await asyncio.wait_for(speaker.go_away.wait(), DEADLINE)
            told = time.monotonic() - began
            assert told < SAVE + BUSY
            assert (await speaker.step(0, 2, ONE)).end == 4, "what is open is served"
            # Nobody half-closes: the streams are ended.
            status = await asyncio.to_thread(server.wait)
            took = time.monotonic() - began
            health.cancel()
        assert status == 0
        assert told + SAVE - 0.1 < took < told + 2 * SAVE + BUSY, "its clients had time to leave, and no more"
        server.start()
        async with connected(server.address) as channel, Speaker(channel, "counter") as speaker:
            assert (await speaker.open_one("a")).position == 4


async def test_the_longest_stop(folder: Path, tmp_path: Path) -> None:
    """The store does not answer, and a client stays: nothing can be saved, and the process ends all the same."""
    grace = 2
    options = ["--durability", "interval", "--checkpoint-interval", "600", "--drain-grace", str(grace)]
    with redis_server(tmp_path) as store, process(folder, "--store", store.url, *options) as server:
        async with connected(server.address) as channel, Speaker(channel, "counter") as speaker:
            await speaker.open_one("a")
            await speaker.step(0, 0, ONE)
            store.process.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            server.signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.wait) == 0
            took = time.monotonic() - began
        store.process.send_signal(signal.SIGCONT)
    assert SAVE + grace - 0.1 < took < longest(grace) + BUSY
    assert f"leaving after {grace} s with work undone: raise --drain-grace" in server.output


def longest(grace: float) -> float:
    """Seconds from SIGTERM to the exit at most."""
    return SAVE + grace + LEAVE


@pytest.mark.parametrize("name", ["overlays/try", "overlays/cluster"])
def test_kubernetes_waits_long_enough(name: str) -> None:
    (one,) = [one for one in build(KUBERNETES / name) if one["kind"] == "Deployment"]
    (container,) = containers(one)
    stops = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod(one)["terminationGracePeriodSeconds"] >= stops + longest(grace_of(container)) + BUSY


def test_kserve_waits_long_enough() -> None:
    runtime, service = sorted(build(KUBERNETES / "kserve"), key=lambda one: one["kind"] != "ServingRuntime")
    (container,) = containers(runtime)
    waits = service["spec"]["predictor"]["terminationGracePeriodSeconds"]
    assert waits >= longest(grace_of(container)) + BUSY


def grace_of(container: Object) -> float:
    told = {entry["name"]: entry.get("value") for entry in container["env"]}
    return float(told["STATESTREAM_DRAIN_GRACE"])


def test_compose_waits_long_enough() -> None:
    (waits,) = stopping_of_compose()
    assert waits >= longest(Settings((Path(),)).drain_grace) + BUSY


def stopping_of_compose() -> set[int]:
    """The seconds that the servers of docker-compose.yml have."""
    composed = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
    servers = [one for one in composed["services"].values() if "statestream-server" in one.get("image", "")]
    assert not [one for one in servers if "STATESTREAM_DRAIN_GRACE" in one["environment"]], "they have the default"
    return {int(one["stop_grace_period"].removesuffix("s")) for one in servers}


def test_systemd_waits_long_enough() -> None:
    (waits,) = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT.read_text("utf-8"), re.MULTILINE)
    assert float(waits) >= longest(Settings((Path(),)).drain_grace) + BUSY


def test_the_page_tells_these_times() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text("utf-8")
    assert f"{SAVE:.0f} s + `--drain-grace` + {LEAVE:.0f} s" in page
    told = dict(re.findall(r"^\| (\w+), `\w+` \| (\d+ s.*?) \|$", page, re.MULTILINE))
    (one,) = [one for one in build(KUBERNETES / "base") if one["kind"] == "Deployment"]
    (container,) = containers(one)
    waits, stops = pod(one)["terminationGracePeriodSeconds"], container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert told["Kubernetes"] == f"{grace_of(container):.0f} s | {waits} s, of which {stops} s `preStop`"
    default = f"{Settings((Path(),)).drain_grace:.0f} s"
    (unit,) = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT.read_text("utf-8"), re.MULTILINE)
    assert told["systemd"] == f"{default}, the default | {unit} s"
    assert told["Compose"] == f"{default} | {stopping_of_compose().pop()} s"
