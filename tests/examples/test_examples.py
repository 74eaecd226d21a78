"""examples/: the command of each README runs as it stands and prints what the README shows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import pages
from tests.support.pages import ROOT
from tests.test_readme import same

RUNS = {
    "sensors": "tests/examples/test_examples.py::test_sensors",
    "alerts": "tests/examples/test_examples.py::test_alerts",
    "demand": "tests/examples/test_examples.py::test_demand",
    "voice": "tests/examples/test_examples.py::test_voice",
    "images": "tests/examples/test_examples.py::test_images",
    "letters": "tests/examples/test_examples.py::test_letters",
}


def run(example: str, place: Path) -> None:
    """In a folder of its own that looks like the checkout, so that what it writes is not left there."""
    for name in ("deploy", "docs", "examples"):
        (place / name).symlink_to(ROOT / name)
    block = pages.run_by(f"examples/{example}/README.md", RUNS[example])
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    ran = subprocess.run(
        ["bash", "-euc", block.text],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=200,
        # Two trainings at a time on two processors: more threads only wait for each other.
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert same(ran.stdout, block.output or ""), ran.stdout


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_sensors(tmp_path: Path) -> None:
    run("sensors", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_alerts(tmp_path: Path) -> None:
    run("alerts", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_demand(tmp_path: Path) -> None:
    run("demand", tmp_path)


@pytest.mark.slow
def test_voice(tmp_path: Path) -> None:
    run("voice", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_images(tmp_path: Path) -> None:
    run("images", tmp_path)


@pytest.mark.slow
def test_letters(tmp_path: Path) -> None:
    run("letters", tmp_path)


@pytest.mark.parametrize("example", RUNS)
def test_readmes_run_and_link_somewhere(example: str) -> None:
    page = ROOT / "examples" / example / "README.md"
    assert [pages.state(block, page) for block in pages.blocks(page)] == ["run"]
