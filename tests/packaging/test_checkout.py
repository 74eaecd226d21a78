"""`pip install .` and `uv pip install .` at the root of a checkout: all three distributions, from its own folders."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import unquote

import pytest
from checkout import PARTS
from packaging.requirements import Requirement

from tests.packaging.test_versions import DISTRIBUTIONS, canonical, project
from tests.services import absent
from tests.support.pages import ROOT

OFFLINE = ("--dry-run", "--no-index", "--no-build-isolation", "-c", "constraints.txt")
"""What it needs is in this environment, so nothing is fetched, and nothing is changed."""


def uv() -> str:
    """The uv beside this Python (requirements-dev.txt), or that on PATH."""
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.exists() else shutil.which("uv") or absent("uv is not installed")


@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_one_command_takes_all_three_from_the_folders(tool: str, tmp_path: Path) -> None:
    place = tmp_path / "with space+ü"
    for folder in DISTRIBUTIONS:
        shutil.copytree(ROOT / folder, place / folder, ignore=shutil.ignore_patterns("__pycache__", "dist"))
    (place / "tools").mkdir()
    for file in ("pyproject.toml", "LICENSE", "constraints.txt", "tools/checkout.py"):
        shutil.copy(ROOT / file, place / file)
    python = ["--python", sys.executable]
    command = {
        "pip": [sys.executable, "-m", "pip", "install"],
        "uv": [uv() if tool == "uv" else "", "pip", "install", *python, "--offline", "--no-cache"],
    }[tool]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run([*command, *OFFLINE, "."], capture_output=True, text=True, cwd=place, env=env)
    told = unquote(ran.stdout + ran.stderr)
    assert ran.returncode == 0, told
    if tool == "uv":
        for folder, name in DISTRIBUTIONS.items():
            assert re.search(rf"\+ {name}\b.*file://{re.escape(str(place / folder))}", told), told
    else:
        (line,) = (line for line in told.splitlines() if line.startswith("Would install"))
        assert set(line.split()[2:]) == {f"{name}-0.1.0" for name in (*DISTRIBUTIONS.values(), "statestream-all")}
    # Nothing of it stays in the checkout, where it would be committed.
    assert sorted(path.name for path in place.iterdir() if not path.name.startswith(".")) == sorted(
        [*DISTRIBUTIONS, "tools", "pyproject.toml", "LICENSE", "constraints.txt"]
    )


def test_it_names_what_there_is() -> None:
    named = [(Requirement(requirement), folder) for requirement, folder in PARTS]
    assert {(requirement.name, folder) for requirement, folder in named} == {
        (name, folder) for folder, name in DISTRIBUTIONS.items()
    }
    for requirement, folder in named:
        assert requirement.extras <= project(folder).get("optional-dependencies", {}).keys()
    assert project(".")["version"] == project("client")["version"]


def test_uv_leaves_the_tools_where_they_are() -> None:
    """`uv sync` would make .venv into what the project needs, without the tools of the Makefile."""
    ran = subprocess.run([uv(), "sync", "--offline", "--dry-run"], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode != 0
    assert "unmanaged" in ran.stderr


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_uv_builds_anew_what_has_changed(folder: str) -> None:
    """By itself it looks at pyproject.toml alone, and would install the sources of before a `git pull`."""
    tools = tomllib.loads((ROOT / folder / "pyproject.toml").read_text("utf-8"))["tool"]
    patterns = [key["file"] for key in tools["uv"]["cache-keys"]]
    (package,) = (ROOT / folder / "src").iterdir()
    assert package / "__init__.py" in [path for pattern in patterns for path in (ROOT / folder).glob(pattern)]
    assert canonical(package.name) == DISTRIBUTIONS[folder]
