"""The compose files and images by their text: pinned, hardened, published on loopback; what runs is tests/compose'."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.compose.engine import IMAGES
from tests.packaging.test_versions import project

ROOT = Path(__file__).resolve().parents[2]
VERSION = project("server")["version"]
FILES = ["docker-compose.yml", "compose.simple.yml"]
BUILT = "statestream-"


def services(file: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / file).read_text())["services"]
    return found


EVERY = [(file, name) for file in FILES for name in services(file)]


@pytest.mark.parametrize(("file", "name"), EVERY)
def test_a_container_has_no_right_that_it_does_not_need(file: str, name: str) -> None:
    service = services(file)[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert set(service.get("cap_add", [])) <= ({"CHOWN", "SETGID", "SETUID", "SETPCAP"} if name == "redis" else set())


@pytest.mark.parametrize(("file", "name"), EVERY)
def test_images_are_pinned_and_what_is_published_is_on_loopback(file: str, name: str) -> None:
    service = services(file)[name]
    tag = service["image"].rpartition(":")[2]
    assert re.search(r"\d+\.\d+\.\d+", tag), service["image"]
    if service["image"].startswith(BUILT):
        assert tag == VERSION
    elif not service["image"].startswith("grafana/"):  # Of that one there is no stand-in.
        assert service["image"] in IMAGES.values()
    for port in service.get("ports", []):
        assert port.startswith("${STATESTREAM_BIND:-127.0.0.1}:")


def test_every_setting_of_the_files_is_in_the_example_with_the_value_that_holds_without_it() -> None:
    given = dict(re.findall(r"^(\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    used = [pair for file in FILES for pair in re.findall(r"\$\{(\w+):-([^}]*)\}", (ROOT / file).read_text())]
    alone = {"STATESTREAM_HTTP_PORT": "8002"}  # Of compose.simple.yml, whose head tells of it.
    assert given | alone == dict(used)
    assert all(value == (given | alone)[name] for name, value in used)


def test_no_password_is_on_a_command_line_or_in_the_environment() -> None:
    for name, service in services("docker-compose.yml").items():
        for text in [*service.get("command", []), *map(str, service.get("environment", {}).values())]:
            assert "password" not in re.sub(r"password_file=/run/secrets/\w+|/run/secrets/\w+", "", text), (name, text)


def test_the_images_are_made_of_one_pinned_python() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    (tag,) = re.findall(r"^ARG PYTHON=(.+)$", text, re.MULTILINE)
    assert IMAGES["python"] == f"python:{tag}"
    assert f"ARG VERSION={VERSION}" in text
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", text, re.MULTILINE)
    names = [name for _, name in stages]
    assert all(source in names or source == "python:${PYTHON}" for source, _ in stages)
    assert stages[-1] == ("server", "")
    assert {"server", "server-gpu", "export"} <= set(names)


def test_redis_writes_before_it_answers_and_evicts_nothing() -> None:
    settings = (ROOT / "deploy" / "compose" / "redis.conf").read_text().splitlines()
    assert {"appendonly yes", "appendfsync always", "maxmemory-policy noeviction"} <= set(settings)
