"""The image of the server alone: small, without tools, and soon there to answer."""

from __future__ import annotations

import json
import shlex
import statistics
import time

import numpy as np
import pytest

import statestream
from tests.compose.engine import ROOT, free_ports, require_engine, run
from tests.support.pages import run_by

pytestmark = [pytest.mark.compose, pytest.mark.timeout(600)]

TIMES = 3
TOOLS = ("gcc", "cc", "c++", "make", "cargo")


def test_an_image_answers_and_has_nothing_to_build_with() -> None:
    require_engine()
    test = "tests/compose/test_images.py::test_an_image_answers_and_has_nothing_to_build_with"
    build, start = (shlex.split(line) for line in run_by("docs/deploy.md", test).commands())
    run(*[str(ROOT) if part == "." else part.replace("deploy/", f"{ROOT}/deploy/") for part in build], timeout=400)
    image = start[-1]
    seconds = [first_answer(start) for _ in range(TIMES)]
    size = int(run("docker", "image", "inspect", "--format", "{{.Size}}", image))
    (base,) = {int(run("docker", "image", "inspect", "--format", "{{.Size}}", name)) for name in [base_of()]}
    figures = {"bytes": size, "over_its_base": size - base, "first_answer_seconds": statistics.median(seconds)}
    print(json.dumps(figures))
    assert size - base < 300e6
    found = run("docker", "run", "--rm", "--entrypoint", "sh", image, "-c", f"which {' '.join(TOOLS)} || echo none")
    assert found == "none"
    no_pip = "import importlib.util as u; print(*[u.find_spec(name) for name in ('pip', 'setuptools')])"
    assert run("docker", "run", "--rm", "--entrypoint", "python", image, "-c", no_pip) == "None None"
    labels = json.loads(run("docker", "image", "inspect", "--format", "{{json .Config.Labels}}", image))
    assert {f"org.opencontainers.image.{name}" for name in ("title", "description", "version", "licenses")} <= {*labels}


def base_of() -> str:
    """The image that the Dockerfile begins with."""
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    (tag,) = [line.removeprefix("ARG PYTHON=") for line in lines if line.startswith("ARG PYTHON=")]
    return f"python:{tag}"


def first_answer(start: list[str]) -> float:
    """Runs the image as the page does; seconds from `docker run` to the first answer of a session."""
    port = free_ports(1)[0]
    name = f"statestream-test-{port}"
    here = {"statestream": name, "127.0.0.1:8001:8001": f"127.0.0.1:{port}:8001"}
    began = time.monotonic()
    try:
        run(*[here.get(part, part) for part in start])
        # What was not reached yet is tried again soon, not as late as the client would.
        while True:
            settings = statestream.Settings(connect_timeout=1.0)
            try:
                with statestream.connect(f"127.0.0.1:{port}", settings=settings) as client:
                    client.session("sunspots").step(np.array([5.0], np.float32))
                return time.monotonic() - began
            except statestream.ServerUnavailable:
                assert time.monotonic() - began < 60, run("docker", "logs", name)
    finally:
        run("docker", "rm", "--force", "--volumes", name)
