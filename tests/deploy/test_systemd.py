"""deploy/systemd/statestream.service: verified by systemd-analyze, and what it starts is run; by no systemd."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from statestream_server.cli import serve
from tests.server.stores.redis_server import free_port, redis_server
from tests.services import require_binary
from tests.support import models
from tests.support.pages import ROOT, run_by
from tests.support.serving import Process, launched

UNIT = ROOT / "deploy" / "systemd" / "statestream.service"
COMMAND = "/opt/statestream/bin/statestream"
EXPOSED = 2.0
"""Of 10, by systemd-analyze security: what a service could reach that it does not need."""


def lines(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text("utf-8"), re.MULTILINE)


def test_systemd_knows_all_of_it(tmp_path: Path) -> None:
    """With a command that is there in the place of the installed one."""
    binary = require_binary("systemd-analyze")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text("utf-8").replace(COMMAND, sys.executable))
    ran = subprocess.run([binary, "verify", "--man=no", str(unit)], capture_output=True, text=True)
    said = [line for line in (ran.stdout + ran.stderr).splitlines() if UNIT.name in line]
    assert (ran.returncode, said) == (0, [])
    ran = subprocess.run(
        [binary, "security", "--offline=true", "--no-pager", str(unit)], capture_output=True, text=True
    )
    found = re.search(r"Overall exposure level for statestream\.service: ([\d.]+)", ran.stdout)
    assert found, ran.stdout + ran.stderr
    assert float(found[1]) <= EXPOSED


def test_an_unknown_setting_is_told(tmp_path: Path) -> None:
    binary = require_binary("systemd-analyze")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text("utf-8").replace(COMMAND, sys.executable).replace("ProtectHome=", "ProtectHouse="))
    ran = subprocess.run([binary, "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert "ProtectHouse" in ran.stdout + ran.stderr


def test_the_unit_runs_with_settings_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ExecStart starts, with the page's server.env: the environment gives what no flag does."""
    block = run_by("docs/deploy.md", "tests/deploy/test_systemd.py::test_the_unit_runs_with_settings_of_a_file")
    told = dict(line.split("=", 1) for line in block.commands())
    known = {str(parameter.envvar) for parameter in serve.params}
    assert set(told) <= known
    (start,) = lines("ExecStart")
    command, verb, folder, *flags = shlex.split(start)
    assert (command, verb, folder) == (COMMAND, "serve", "/srv/statestream/models")
    assert lines("StateDirectory") == ["statestream"]
    assert flags == ["--store", "sqlite:/var/lib/statestream/sessions.db"]
    models.write(tmp_path / "models", "counter")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with redis_server(tmp_path) as store:
        for name, value in told.items():
            monkeypatch.setenv(name, value.replace("127.0.0.1:6379", f"127.0.0.1:{store.port}"))
        # The unit's own store, and with a drop-in that takes --store away the one of the file.
        for more in (["--store", f"sqlite:{tmp_path / 'sessions.db'}"], []):
            server = Process(tmp_path / "models", more, port=free_port())
            with launched(server):
                server.ready()
                assert server.stop() == 0
            assert f"at most {told['STATESTREAM_DRAIN_GRACE']} s" in server.output
        assert (tmp_path / "sessions.db").exists()
        assert store.client.dbsize() > 0
