"""Configuration: where values come from, which goes first, what is refused, and what is printed of it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import settings_page
from click.testing import CliRunner

from statestream_server import configuration
from statestream_server.cli import serve
from statestream_server.effective import config


@pytest.fixture(autouse=True)
def no_default_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default place lies in the test's folder, and nothing is there yet."""
    place = tmp_path / "default.toml"
    monkeypatch.setattr(configuration, "DEFAULT_FILE", place)
    return place


def told(*arguments: str, **environment: str) -> dict[str, Any]:
    result = CliRunner().invoke(config, [*arguments, "--json"], env=environment)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


def refused(*arguments: str, **environment: str) -> str:
    result = CliRunner().invoke(config, arguments, env=environment)
    assert result.exit_code == 2, result.output
    return result.output


def test_flags_go_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("port = 1\nhttp-port = 1\nmax_sessions = 1\n")
    found = told("--config", str(file), "--port", "3", STATESTREAM_PORT="2", STATESTREAM_HTTP_PORT="2")
    assert found["port"] == {"value": 3, "source": "flag", "from": "--port"}
    assert found["http-port"] == {"value": 2, "source": "environment", "from": "STATESTREAM_HTTP_PORT"}
    assert found["max-sessions"] == {"value": 1, "source": "file", "from": f"{file}:max-sessions"}
    assert found["host"] == {"value": "127.0.0.1", "source": "default", "from": ""}
    assert found["durability"]["value"] == "interval"
    assert found["threads"]["value"] > 0


def test_the_default_place_is_read_unless_another_is_named(no_default_file: Path, tmp_path: Path) -> None:
    no_default_file.write_text("port = 5\n")
    assert told()["port"]["value"] == 5
    assert told("--config=")["port"]["value"] == 8001
    other = tmp_path / "other.toml"
    other.write_text("")
    assert told(STATESTREAM_CONFIG=str(other))["port"]["value"] == 8001
    assert "No such file" in refused("--config", str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("max-sesions = 7", "did you mean max-sessions"),
        ("[limits]\nport = 1", "unknown key 'limits'"),
        ("config = 'x'", "unknown key 'config'"),
        ("port = true", "port is true, expected is a whole number"),
        ("port = 8001.5", "expected is a whole number"),
        ("port = 70000", "server.toml:port': 70000 is not in the range"),
        ("http = 'no'", "expected is true or false"),
        ("drain-grace = nan", "server.toml:drain-grace': nan is not a finite number of seconds"),
        ("drain-grace = '5'", "expected is a number"),
        ("store = 5", "expected is a text"),
        ("retention = [true]", "retention is true"),
        ("models = [1]", "models is 1"),
        ("edge = 'h3'", "server.toml:edge': 'h3' is not one of"),
        ("max-sessions = 1\nmax_sessions = 2", "twice"),
        ("port = ", "server.toml: "),
        ("drain-grace = 1" + "0" * 400, "expected is a number"),
        ("port = 1" + "0" * 5000, "server.toml: "),
        ('tokens = "a\\u0000b"', "expected is a text"),
        ("port = " + "[" * 5000, "server.toml: "),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_its_key(tmp_path: Path, file: str, said: str) -> None:
    (tmp_path / "server.toml").write_text(file)
    assert said in refused("--config", str(tmp_path / "server.toml"))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_bytes(b"\xff\xfe")
    assert "server.toml: " in refused("--config", str(tmp_path / "server.toml"))
    assert f"{tmp_path}: " in refused("--config", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("STATESTREAM_MAX_SESIONS", "4", "did you mean STATESTREAM_MAX_SESSIONS"),
        ("STATESTREAM_HTP_PORT", "4", "did you mean STATESTREAM_HTTP_PORT"),
        ("STATESTREAM_PORT", "x", "'STATESTREAM_PORT': 'x' is not a valid"),
        ("STATESTREAM_DRAIN_GRACE", "-1", "'STATESTREAM_DRAIN_GRACE': -1.0 is not in the range"),
    ],
)
def test_a_variable_that_is_wrong_is_refused_by_its_name(name: str, value: str, said: str) -> None:
    assert said in refused(**{name: value})


def test_variables_of_others_are_let_be() -> None:
    """Those of the client, and those that Kubernetes makes of Services."""
    told(
        STATESTREAM_TOKEN="t",
        STATESTREAM_ADDRESS="a:1",
        STATESTREAM_SERVICE_HOST="1.2.3.4",
        STATESTREAM_SERVICE_PORT_GRPC="8001",
        STATESTREAM_REDIS_PORT="tcp://1.2.3.4:6379",
        STATESTREAM_REDIS_PORT_6379_TCP_ADDR="1.2.3.4",
    )


@pytest.mark.parametrize(
    "store",
    [
        "redis://me:geheim@h:1/0",
        "redis://:ge/he?im@h",
        "rediss://:a@geheim@h",
        "redis://h?password=geheim&timeout_ms=5",
        "redis://h?pass%77ord=geheim",
        "redis://h?ssl_password=geheim",
    ],
)
def test_passwords_are_not_shown(store: str) -> None:
    shown = CliRunner().invoke(config, ["--store", store]).output
    assert "***" in shown
    assert "he" not in configuration.masked(store).replace("timeout", "")
    assert configuration.masked("redis://h?password_file=/run/x") == "redis://h?password_file=/run/x"


def test_the_page_lists_all_settings(tmp_path: Path) -> None:
    """docs/settings.md is made of the flags, and its example is taken."""
    made = settings_page.page()
    assert settings_page.PAGE.read_text("utf-8") == made, "run python tools/settings_page.py"
    example = made.partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "server.toml").write_text(example)
    found = told("--config", str(tmp_path / "server.toml"))
    assert {name for name, one in found.items() if one["source"] == "file"} == {*tomllib.loads(example)}


def test_what_is_read_anew_comes_from_the_file_as_it_is_now(tmp_path: Path) -> None:
    """A server remembers what it was called with: the file's new values count, its faults are told."""
    file = tmp_path / "server.toml"
    file.write_text("drain-grace = 1\n")
    with serve.make_context("serve", [str(tmp_path), "--config", str(file)]) as context:
        given = context.obj
        assert context.params["drain_grace"] == 1
    file.write_text("drain-grace = 2\n")
    with serve.make_context("serve", [*given]) as context:
        assert context.params["drain_grace"] == 2
    file.write_text("drain-grase = 2\n")
    with pytest.raises(click.UsageError, match="did you mean drain-grace"):
        serve.make_context("serve", [*given])
