"""The scripts of the first hour, as a user runs them: from wheels, in an empty environment."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import setup_venv

from tests.first_hour.test_first_hour import HERE, run
from tests.packaging.test_wheels import Environment
from tests.support import models
from tests.support.pages import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


def test_the_first_hour(released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        monkeypatch.delenv(name, raising=False)
    env = Environment(tmp_path / "venv", released)
    constraints = Path(setup_venv.effective_constraints())
    env.install(*setup_venv.torch_arguments(os.environ.get("STATESTREAM_TORCH", "").strip()), constraints=constraints)
    env.install("statestream[cli,pandas]", "statestream-server[cpu]", "statestream-export", constraints=constraints)
    python = str(env.bin / "python")
    place = tmp_path / "hour"
    shutil.copytree(ROOT / "deploy" / "models" / "sunspots", place / "models" / "sunspots")
    assert run("own_lstm.py", place, python).endswith(" 1400\n")
    assert run("devices.py", place, python) == "5000\n"

    shutil.copy(models.write(tmp_path / "made", "gru") / "gru" / "1" / "model.onnx", place / "somebodys.onnx")
    monkeypatch.setenv("STATESTREAM_PORT", "0")
    monkeypatch.setenv("STATESTREAM_HTTP_PORT", "0")
    monkeypatch.setenv("STATESTREAM_STORE", "memory")
    monkeypatch.setenv("PATH", os.pathsep.join([str(env.bin), os.environ["PATH"]]))
    command = ["bash", "-euc", "exec " + (HERE / "somebodys.sh").read_text("utf-8").splitlines()[-1]]
    with subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[3].rstrip(",")
            assert len(run("somebodys.py", place, python, replaced=("localhost:8001", address)).splitlines()) == 3
        finally:
            server.kill()
