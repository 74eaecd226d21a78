"""A container's arguments and environment, run as a process of this machine."""

from __future__ import annotations

import asyncio
import urllib.request
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.deploy.manifests import KUBERNETES, Object, build, containers, documents
from tests.server.stores.redis_server import free_port
from tests.support import models
from tests.support.calls import connected
from tests.support.serving import Process, launched


def server_of(name: str) -> Object:
    """The server's container in a kustomization."""
    (found,) = [
        container
        for one in build(KUBERNETES / name)
        for container in containers(one)
        if container["image"].startswith("statestream-server")
    ]
    return found


def check_server(folder: Path, container: Object, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a server over a store with what a container is told: its probes answer, and it drains in order."""
    for entry in container["env"]:
        value = str(entry.get("value", "")).replace("$(POD_IP)", "127.0.0.1")
        monkeypatch.setenv(entry["name"], url if entry["name"] == "STATESTREAM_STORE" else value)
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    models.write(folder / "models", "counter")
    http = free_port()
    server = Process(folder / "models", ["--http", "--http-port", str(http)])
    with launched(server):
        server.ready()
        assert container["readinessProbe"]["grpc"] == {"port": 8001}
        assert asyncio.run(_health(server.address)) == health_pb2.HealthCheckResponse.SERVING
        for path in (container["livenessProbe"]["httpGet"]["path"], "/metrics"):
            with urllib.request.urlopen(f"http://127.0.0.1:{http}{path}", timeout=10) as answer:
                shown = answer.read().decode()
        assert metric_of_the_autoscaler() in {line.split()[0].partition("{")[0] for line in shown.splitlines()}
        assert server.stop() == 0, server.output
    assert "work undone" not in server.output


async def _health(address: str) -> int:
    async with connected(address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        return int(answer.status)


def metric_of_the_autoscaler() -> str:
    """The metric that the HPA asks for, and the adapter serves."""
    (autoscaler,) = documents(KUBERNETES / "autoscaling" / "autoscaler.yaml")
    (adapter,) = documents(KUBERNETES / "autoscaling" / "prometheus-adapter.yaml")
    (rule,) = adapter["rules"]["custom"]
    (metric,) = autoscaler["spec"]["metrics"]
    name: str = metric["pods"]["metric"]["name"]
    assert rule["name"]["as"] == name
    assert rule["seriesQuery"].partition("{")[0] == name
    return name
