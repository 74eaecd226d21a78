"""`python -m benchmarks.device` runs on any machine, and says so where it is the CPU's figures that it shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_it_measures_every_path_and_names_the_device() -> None:
    arguments = ["--device", "cpu", "--resident", "100", "--rounds", "1", "--seconds", "0.01"]
    command = [sys.executable, "-m", "benchmarks.device", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False)
    assert result.returncode == 0, result.stderr
    assert "This is the CPU: its figures say nothing of a GPU." in result.stdout
    assert "64 × 1" in result.stdout
    assert "256 × 1" not in result.stdout
    assert "growing from 100 rows" in result.stdout
