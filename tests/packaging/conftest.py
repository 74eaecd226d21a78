"""What the tests of packaging share: one run of `make dist`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `make dist` made."""
    folder = tmp_path_factory.mktemp("released")
    command = [sys.executable, str(ROOT / "tools/dist.py"), "--out", str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder
