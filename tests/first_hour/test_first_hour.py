"""The first hour: scripts as a new user writes them, run as they stand, and no longer than they may be.

From the sources here; from wheels, in an empty environment, in tests/packaging/test_hour.py.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import models
from tests.support.pages import ROOT
from tests.support.serving import process

HERE = Path(__file__).parent
MOST = {"own_lstm.py": 25, "devices.py": 15, "somebodys.py": 5}


def lines(script: Path) -> int:
    """Lines of code, as ruff lays them out: without imports, the docstring, comments and empty ones."""
    text = script.read_text("utf-8")
    tree = ast.parse(text)
    left = {
        number
        for part in ast.walk(tree)
        if isinstance(part, ast.Import | ast.ImportFrom) or part is tree.body[0]
        for number in range(part.lineno, (part.end_lineno or part.lineno) + 1)
    }
    code = enumerate(text.splitlines(), 1)
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for number, line in code if number not in left)


@pytest.mark.parametrize("script", MOST)
def test_scripts_are_no_longer_than_they_may_be(script: str) -> None:
    assert lines(HERE / script) <= MOST[script]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has one, with a model from elsewhere in it."""
    place = tmp_path_factory.mktemp("hour")
    shutil.copytree(ROOT / "deploy" / "models" / "sunspots", place / "models" / "sunspots")
    shutil.copy(models.write(place / "made", "gru") / "gru" / "1" / "model.onnx", place / "somebodys.onnx")
    return place


def run(script: str, place: Path, python: str = sys.executable, replaced: tuple[str, str] = ("", "")) -> str:
    text = (HERE / script).read_text("utf-8").replace(*replaced)
    command = [python, "-c", text] if script.endswith(".py") else ["bash", "-euc", text]
    path = os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", "")])
    ran = subprocess.run(
        command, cwd=place, capture_output=True, text=True, timeout=110, env={**os.environ, "PATH": path}
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_an_lstm_of_ones_own(place: Path) -> None:
    shown = run("own_lstm.py", place)
    assert "net-lo-80" in shown
    assert shown.endswith(" 1400\n")


def test_devices(place: Path) -> None:
    assert run("devices.py", place) == "5000\n"


@pytest.fixture
def served(place: Path) -> Iterator[Any]:
    """A server of somebody else's file, by one command."""
    (command,) = [line for line in (HERE / "somebodys.sh").read_text("utf-8").splitlines() if line[:1] not in ("#", "")]
    assert command == "statestream serve somebodys.onnx"
    with process(place / "somebodys.onnx", "--store", "memory") as server:
        yield server


def test_somebodys_file(place: Path, served: Any) -> None:
    shown = run("somebodys.py", place, replaced=("localhost:8001", served.address)).splitlines()
    assert "somebodys" in shown[0]
    assert len(shown) == 3


def cells() -> list[str]:
    notebook = json.loads((HERE / "notebook.ipynb").read_text("utf-8"))
    assert not any(cell["outputs"] for cell in notebook["cells"]), "outputs are made when it runs"
    return ["".join(cell["source"]) for cell in notebook["cells"]]


def test_the_cells_of_the_notebook(place: Path) -> None:
    """Without a kernel, which takes its time; test_the_notebook has one."""
    ran = subprocess.run(
        [sys.executable, "-c", "\n".join(cells())], cwd=place, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) == 3


@pytest.mark.slow
def test_the_notebook(place: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.reads((HERE / "notebook.ipynb").read_text("utf-8"), 4)
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(place)}}).execute()
    first, second, third = (cell["outputs"] for cell in notebook["cells"])
    assert "<Model sunspots version 1 (session)" in first[0]["data"]["text/plain"]
    assert second[0]["text"].count("\n") == 3
    assert third[0]["data"]["text/plain"].startswith("array(")


def test_curl_alone(place: Path) -> None:
    with process(place / "models", "--store", "memory", "--http", "--http-port", "0") as server:
        (port,) = re.findall(r"metrics on http://127\.0\.0\.1:(\d+)", server.output)
        first, second = run("only_curl.sh", place, replaced=("localhost:8002", f"127.0.0.1:{port}")).splitlines()
    (y,) = json.loads(second)["outputs"]
    assert json.loads(first)["outputs"][0]["shape"] == y["shape"] == [1, 1]
    assert y["data"] != json.loads(first)["outputs"][0]["data"], "it remembers the first"
