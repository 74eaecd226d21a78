"""What each distribution imports is what it asks for; who may import what is pyproject.toml's, for import-linter."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"client": "statestream", "server": "statestream_server", "export": "statestream_export"}
# Namespace packages: which distribution a module of theirs is of cannot be read off its first name.
SHARED = {
    "google.protobuf": "protobuf",
    "google.rpc": "googleapis-common-protos",
    "opentelemetry.exporter": "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry": "opentelemetry-api",
}

# The other build of onnxruntime, what torch's exporter imports, and what rich draws with in a notebook.
ELSEWHERE = {"ipywidgets", "onnxruntime-gpu", "onnxscript"}


def imports(folder: str) -> dict[str, set[Path]]:
    """Every module that a distribution imports, anywhere in a file, with the files that do."""
    found: dict[str, set[Path]] = {}
    package = ROOT / folder / "src" / PACKAGES[folder]
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                found.setdefault(name, set()).add(path.relative_to(package))
    return found


def distributions(folder: str) -> dict[str, set[Path]]:
    """The distributions that own those modules, outside the standard library and the package itself."""
    owners = importlib.metadata.packages_distributions()
    found: dict[str, set[Path]] = {}
    for module, paths in imports(folder).items():
        first = module.partition(".")[0]
        if first in sys.stdlib_module_names or first == PACKAGES[folder]:
            continue
        if first in {"google", "opentelemetry"}:
            names = {name for prefix, name in SHARED.items() if module.startswith(prefix)}
        else:
            names = {canonical(name) for name in owners.get(first, [first])}
        for name in names:
            found.setdefault(name, set()).update(paths)
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(folder: str) -> set[str]:
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [item for items in project.get("optional-dependencies", {}).values() for item in items]
    return {canonical(re.split(r"[^\w.-]", item, maxsplit=1)[0]) for item in [*project["dependencies"], *extras]}


@pytest.mark.parametrize("folder", PACKAGES)
def test_every_import_is_asked_for(folder: str) -> None:
    missing = {name: sorted(map(str, paths)) for name, paths in distributions(folder).items()}
    for name in declared(folder):
        missing.pop(name, None)
    assert not missing, f"{folder}/pyproject.toml does not name these"


@pytest.mark.parametrize("folder", PACKAGES)
def test_everything_asked_for_is_imported(folder: str) -> None:
    unused = declared(folder) - distributions(folder).keys() - ELSEWHERE
    assert not unused, f"{folder}/pyproject.toml names these, no module imports them"
