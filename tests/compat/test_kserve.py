"""kserve's own clients, over gRPC and REST, in an environment of their own: its versions are not ours."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.support import models
from tests.support.serving import lasting_port, process

KSERVE = "kserve==0.21.0"
"""Its own requirements choose the rest."""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kserves_clients_unchanged(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", KSERVE], check=True, timeout=540)
    script, port = Path(__file__).with_name("kserve_calls.py"), str(lasting_port())
    folder = models.write(tmp_path / "models", "counter")
    with process(folder, "--store", "memory", "--http", "--http-port", port) as server:
        ran = subprocess.run(
            [python, "-I", script, server.address, f"127.0.0.1:{port}"], capture_output=True, text=True, timeout=60
        )
    assert ran.returncode == 0, ran.stderr
    steps = {form: [f"{form} [[{number}.0]]" for number in (1, 2, 3)] for form in ("json", "bytes", "grpc")}
    healthy = "True True True"
    assert ran.stdout.splitlines() == [healthy, *steps["json"], *steps["bytes"], healthy, *steps["grpc"]]
