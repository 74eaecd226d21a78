"""docker-compose.yml as the README has it: its commands, its first example through the proxy, what Prometheus sees."""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.compose.engine import IMAGES, ROOT, Deployment, free_ports, require_engine, run, until, volumes
from tests.deploy.test_observing import expressions, rules
from tests.support.pages import chosen, run_by
from tests.test_readme import outputs, same

pytestmark = [pytest.mark.compose, pytest.mark.timeout(600)]

README, PAGE = ROOT / "README.md", "docs/deploy.md"
TARGETS = 3
"""Two replicas, and the proxy."""


class Page(NamedTuple):
    """The deployment that the README's commands made, and where it is reached."""

    deployment: Deployment
    address: str
    prometheus: str

    def ask(self, path: str, **query: str) -> Any:
        """What Prometheus answers."""
        url = f"http://{self.prometheus}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            answer = json.load(response)
        assert answer["status"] == "success"
        return answer["data"]


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    require_engine()
    before, (port, prometheus) = volumes(), free_ports(2)
    settings = {"STATESTREAM_PORT": str(port), "PROMETHEUS_PORT": str(prometheus)}
    deployment = Deployment(f"statestream-test-{port}", settings)
    (block,) = chosen(README, "bash", "compose")
    up, down = (line.removeprefix("docker compose ") for line in block.commands())
    try:
        deployment.compose(*up.split(), timeout=400)
        deployment.wait_healthy()
        yield Page(deployment, f"127.0.0.1:{port}", f"127.0.0.1:{prometheus}")
    finally:
        deployment.compose(*down.split(), "--volumes", "--timeout", "30")
    assert deployment.left() == []
    assert volumes() <= before


def test_the_first_example_of_the_readme_runs_through_the_proxy(page: Page, tmp_path: Path) -> None:
    example, *_ = chosen(README, "python", "")
    (printed,) = outputs([example], page.address, tmp_path)
    assert example.output is not None
    assert same(printed, example.output), printed


def test_the_page_begins_as_the_readme_does(page: Page) -> None:
    block = run_by(PAGE, "tests/compose/test_page.py::test_the_page_begins_as_the_readme_does")
    (readme,) = chosen(README, "bash", "compose")
    assert block.commands() == readme.commands()[:1]


def test_containers_run_as_users_without_rights(page: Page) -> None:
    for service in ("server", "proxy", "redis"):
        for container in page.deployment.containers(service):
            status = run("docker", "exec", container, "cat", "/proc/1/status")
            assert re.search(r"^Uid:\s+[1-9]", status, re.MULTILINE), service
            assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE), service
    server = page.deployment.containers("server")[0]
    wanted = ["/opt/statestream/share/doc/sbom-server.cdx.json", "/models/sunspots/1/model.onnx"]
    run("docker", "exec", server, "test", "-f", wanted[0], "-a", "-f", wanted[1])
    refused = run(
        "docker", "exec", server, "sh", "-c", "touch /models/x /opt/x /x 2>&1; which gcc cc make || echo none"
    )
    assert refused.count("Read-only file system") == len(["/models/x", "/opt/x", "/x"])
    assert refused.endswith("none")


def test_prometheus_sees_every_replica_and_every_expression_says_something(page: Page) -> None:
    test = "tests/compose/test_page.py::test_prometheus_sees_every_replica_and_every_expression_says_something"
    (command,) = run_by(PAGE, test).commands()
    # Alone: of Grafana there is no image where none can be pulled.
    page.deployment.compose(*command.removeprefix("docker compose ").split(), "--no-build", "prometheus")
    until(lambda: len(up(page)) == TARGETS, "Prometheus has found every target")
    found = {rule["name"] for group in page.ask("rules")["groups"] for rule in group["rules"]}
    assert found == {rule["alert"] for rule in rules()}
    drawn = [expression for expression in expressions() if expression not in {rule["expr"] for rule in rules()}]

    # Every expression is one that Prometheus can answer; what counts refusals, errors or moves has no series before the
    # first of them, and nothing of that kind happened here.
    def most() -> bool:
        return sum(bool(page.ask("query", query=one)["result"]) for one in drawn) >= 0.6 * len(drawn)

    until(most, "most panels have something to draw")
    for rule in rules():
        page.ask("query", query=rule["expr"])  # Syntax and types; most of them say nothing while all is well.
    until(lambda: not alerts(page), "no alert is pending")


def alerts(page: Page) -> list[str]:
    """The names of alerts that are pending: one whose first evaluation comes before the first scrape may be.

    Raises:
        AssertionError: One fires.
    """
    found = page.ask("alerts")["alerts"]
    assert not [one for one in found if one["state"] == "firing"], found
    return [one["labels"]["alertname"] for one in found]


def up(page: Page) -> list[str]:
    return [one["scrapeUrl"] for one in page.ask("targets")["activeTargets"] if one["health"] == "up"]


def test_promtool_agrees_with_settings_and_alerts() -> None:
    require_engine()
    promtool = ["docker", "run", "--rm", "--volume", f"{ROOT}:/r:ro", "--entrypoint", "promtool", IMAGES["prometheus"]]
    run(*promtool, "check", "config", "/r/deploy/observe/prometheus.yml")
    run(*promtool, "test", "rules", "/r/tests/compose/alerts_test.yml")
