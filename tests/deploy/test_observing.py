"""What Prometheus alarms by and Grafana draws: every metric is one that there is, every panel has its place."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import metrics_page
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from statestream_server.edges.http import families
from statestream_server.edges.http.metrics import ServerCollector
from tests.support import models
from tests.support.serving import serving

OBSERVE = Path(__file__).resolve().parents[2] / "deploy" / "observe"
GRAFANA = OBSERVE / "grafana"
COLUMNS = 24


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((OBSERVE / "alerts.yml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GRAFANA / "statestream.json").read_text())
    return found


def expressions() -> list[str]:
    return [rule["expr"] for rule in rules()] + [
        target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]
    ]


async def test_every_metric_is_one_that_a_server_tells(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    async with serving(models.write(tmp_path)) as local:
        registry.register(ServerCollector(local.server))
    text = generate_latest(registry).decode()
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    told = {name for name, kind in kinds.items() if kind != "histogram"}
    told |= {
        f"{name}_{end}" for name, kind in kinds.items() if kind == "histogram" for end in ("bucket", "sum", "count")
    }
    told |= {one.shown for one in families.WORKERS}  # Which the process before them tells.
    named = set(re.findall(r"\b(?:statestream|process)_\w+", " ".join(expressions())))
    assert named
    assert named <= told
    listed = [one for group in families.GROUPS.values() if group is not families.WORKERS for one in group]
    assert {one.shown for one in listed} == {*kinds}, "docs/metrics.md is made of a list of all of them"


def test_what_an_alert_looks_at_is_drawn() -> None:
    """Whoever is woken sees in the dashboard how it came to it."""

    def named(expressions: Iterable[str]) -> set[str]:
        return set(re.findall(r"\b(?:statestream|process|haproxy)_\w+", " ".join(expressions)))

    drawn = named(target["expr"] for panel in dashboard()["panels"] for target in panel["targets"])
    assert named(rule["expr"] for rule in rules()) <= drawn


def test_the_page_of_metrics_is_made_of_the_list() -> None:
    assert metrics_page.PAGE.read_text("utf-8") == metrics_page.page(), "run python tools/metrics_page.py"
    names = [one.name for group in families.GROUPS.values() for one in group]
    assert len({*names}) == len(names)
    for one in (one for group in families.GROUPS.values() for one in group):
        assert re.fullmatch(r"[a-z][a-z_]*[a-z]", one.name)
        assert not one.name.endswith(("_total", "_count", "_sum", "_bucket", "_info", "_milliseconds", "_ms"))


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_is_explained(rule: dict[str, Any]) -> None:
    page = (OBSERVE.parents[1] / "docs" / "operations.md").read_text("utf-8")
    found = re.search(rf"^### {rule['alert']}\n+(.+?)(?=^#|\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, "what it means and what to do stands in docs/operations.md"
    assert len(found[1].split()) > 15
    assert rule["annotations"]["runbook_url"].endswith(f"docs/operations.md#{rule['alert'].lower()}")


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_how_bad_it_is_and_what_it_is(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"page", "warn"}
    assert rule["annotations"]["summary"]
    if rule["labels"]["severity"] == "page":
        assert rule["annotations"]["description"], "whoever is woken is told what to look at"


def test_panels_have_a_place_of_their_own_and_the_source_that_is_provisioned() -> None:
    (source,) = yaml.safe_load((GRAFANA / "datasource.yml").read_text())["datasources"]
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set[tuple[int, int]]()
    for panel in panels:
        assert panel["title"]
        assert panel["type"] in {"stat", "timeseries"}
        for one in (panel, *panel["targets"]):
            assert one["datasource"] == {"type": source["type"], "uid": source["uid"]}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS
        columns, lines = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = set(itertools.product(columns, lines))
        assert not cells & taken
        taken |= cells


def test_what_is_provisioned_lies_where_the_containers_look() -> None:
    compose = (OBSERVE.parents[1] / "docker-compose.yml").read_text()
    (provider,) = yaml.safe_load((GRAFANA / "dashboards.yml").read_text())["providers"]
    assert f"statestream.json:{provider['options']['path']}/statestream.json:ro" in compose
    for file in yaml.safe_load((OBSERVE / "prometheus.yml").read_text())["rule_files"]:
        assert f"./deploy/observe/{file}:/etc/prometheus/{file}:ro" in compose


def test_promtool_agrees_with_settings_and_alerts() -> None:
    """When each alert fires, and when not; without promtool the compose tests ask that of Prometheus' image."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on PATH: Debian's package prometheus, or a release of Prometheus, has it")
    tests = OBSERVE.parents[1] / "tests" / "compose" / "alerts_test.yml"
    for words in (("check", "rules", OBSERVE / "alerts.yml"), ("test", "rules", tests)):
        done = subprocess.run([promtool, *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
