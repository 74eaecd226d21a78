"""What the tests of packaging share: one run of `make dist`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import ROOT, run_by


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `make dist` made."""
    folder = tmp_path_factory.mktemp("released")
    (line,) = run_by("docs/deploy.md", "tests/packaging/test_dist.py::test_all_of_a_release_is_there").commands()
    assert line == "make dist"
    # The environment is there, as this runs in it: make is not to ask whether it is of today.
    command = ["make", "--old-file", ".venv/.statestream-installed", "dist", f"RUN={sys.executable}"]
    ran = subprocess.run([*command, f"ARGS=--out {folder}"], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder
