"""compose.simple.yml as a user runs it: built, served, killed, continued, from a client on the host."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import statestream
from statestream import signature
from tests.compose.engine import Deployment, free_ports, readable, require_engine, run
from tests.support.pages import run_by

pytestmark = [pytest.mark.compose, pytest.mark.timeout(540)]


def save_running_sum(path: Path) -> None:
    """Writes a model whose memory is the sum of all inputs so far, and whose output is that sum."""
    batch: list[str | int] = ["batch", 2]
    named = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, batch) for name in ("x", "old", "new", "y")}
    nodes = [helper.make_node("Add", ["x", "old"], ["new"]), helper.make_node("Identity", ["new"], ["y"])]
    graph = helper.make_graph(nodes, "running_sum", [named["x"], named["old"]], [named["y"], named["new"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    described = signature.Signature(
        format=signature.FORMAT,
        inputs=[signature.TensorSpec(name="x", dtype="float32", shape=[-1, 2], batch_axis=0)],
        outputs=[signature.TensorSpec(name="y", dtype="float32", shape=[-1, 2], batch_axis=0)],
        states=[signature.StateSpec(input="old", output="new", dtype="float32", shape=[-1, 2], batch_axis=0)],
        description="The running sum of its inputs.",
    )
    helper.set_model_props(model, {signature.METADATA_KEY: signature.dumps(described)})
    path.parent.mkdir(parents=True)
    onnx.save(model, path)


@pytest.fixture
def ports() -> list[int]:
    return free_ports(2)


@pytest.fixture
def deployment(tmp_path: Path, ports: list[int]) -> Iterator[Deployment]:
    require_engine()
    save_running_sum(tmp_path / "models" / "running-sum" / "1" / "model.onnx")
    readable(tmp_path / "models")
    settings = {
        "MODELS": str(tmp_path / "models"),
        "STATESTREAM_PORT": str(ports[0]),
        "STATESTREAM_HTTP_PORT": str(ports[1]),
    }
    test = "tests/compose/test_simple.py::test_a_session_outlives_its_container"
    (command,) = run_by("docs/deploy.md", test).commands()
    file, up = command.removeprefix("docker compose -f ").split(" ", 1)
    deployed = Deployment(f"statestream-test-{ports[0]}", settings, file)
    try:
        deployed.compose(*up.split(), timeout=400)
        yield deployed
    finally:
        deployed.compose("down", "--volumes", "--timeout", "30")


def test_a_session_outlives_its_container(deployment: Deployment, ports: list[int]) -> None:
    deployment.wait_healthy()
    container = deployment.container()
    assert run("docker", "exec", container, "id", "-u") != "0"

    x = np.array([1.0, 10.0], np.float32)
    with statestream.connect(f"127.0.0.1:{ports[0]}") as client:
        session = client.session("running-sum", id="survivor")
        for steps in range(1, 6):
            np.testing.assert_array_equal(session.step(x), x * steps)
        session.flush()

        run("docker", "kill", "--signal", "KILL", container)
        run("docker", "start", container)
        deployment.wait_healthy()
        assert session.position == 5
        np.testing.assert_array_equal(session.step(x), x * 6)

    with statestream.connect(f"127.0.0.1:{ports[0]}") as other, other.session("running-sum", id="survivor") as again:
        assert again.position == 6
        np.testing.assert_array_equal(again.step(x), x * 7)

    with urllib.request.urlopen(f"http://127.0.0.1:{ports[1]}/metrics", timeout=10) as response:
        assert b"statestream" in response.read()


def test_the_container_leaves_cleanly_and_keeps_sessions(deployment: Deployment, ports: list[int]) -> None:
    deployment.wait_healthy()
    x = np.array([2.0, 0.0], np.float32)
    address = f"127.0.0.1:{ports[0]}"
    with statestream.connect(address) as client, client.session("running-sum", id="kept") as session:
        session.step(x)

    deployment.compose("stop")
    stopped = run("docker", "inspect", "--format", "{{.State.ExitCode}}", deployment.container())
    assert stopped == "0", deployment.logs()
    deployment.compose("up", "--detach", "--force-recreate")
    deployment.wait_healthy()
    with statestream.connect(address) as client, client.session("running-sum", id="kept") as session:
        np.testing.assert_array_equal(session.step(x), x * 2)
