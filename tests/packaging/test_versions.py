"""The three distributions carry one version, ask for each other in it, and are what they say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DISTRIBUTIONS = {"client": "statestream", "server": "statestream-server", "export": "statestream-export"}


def project(folder: str) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonical(name): version for name, version in pins}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_names(folder: str) -> list[str]:
    table = project(folder)
    extras = [item for items in table.get("optional-dependencies", {}).values() for item in items]
    return [canonical(re.split(r"[^\w.-]", item, maxsplit=1)[0]) for item in [*table["dependencies"], *extras]]


def test_one_version() -> None:
    assert len({project(folder)["version"] for folder in DISTRIBUTIONS}) == 1


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_each_is_named_and_typed(folder: str) -> None:
    name = project(folder)["name"]
    assert name == DISTRIBUTIONS[folder]
    assert (ROOT / folder / "src" / name.replace("-", "_") / "py.typed").exists()


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_each_has_the_licence_as_a_file(folder: str) -> None:
    """A link would lie in the source archive as one, lead nowhere, and leave the wheel without a licence."""
    path = ROOT / folder / "LICENSE"
    assert not path.is_symlink()
    assert path.read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("folder", ["server", "export"])
def test_they_ask_for_the_client_of_their_own_version(folder: str) -> None:
    assert f"statestream[cli]=={project('client')['version']}" in project(folder)["dependencies"]


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_constraints_pin_every_requirement(folder: str) -> None:
    unpinned = {name for name in requirement_names(folder) if name not in constraints() and name != "statestream"}
    assert not unpinned, f"add to constraints.txt: {sorted(unpinned)}"


def test_constraints_are_public_versions_of_known_names() -> None:
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert not line or line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line


@pytest.mark.parametrize("file", ["requirements-dev.txt", "requirements-models.txt"])
def test_all_that_make_install_adds_is_pinned(file: str) -> None:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    names = {canonical(line.partition("[")[0]) for line in lines if line and not line.startswith("#")}
    assert names <= constraints().keys()


@pytest.mark.parametrize(("folder", "forbidden"), [("client", {"onnxruntime", "torch"}), ("server", {"torch"})])
def test_what_a_distribution_never_asks_for(folder: str, forbidden: set[str]) -> None:
    assert not forbidden & set(requirement_names(folder))
