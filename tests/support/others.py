"""Models that others put into their packages: where the files lie. None of them is in this tree."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

from tests import services


def found(package: str, file: str) -> Path | None:
    """The file of an importable package, which is not imported; None where it is not installed."""
    try:
        spec: ModuleSpec | None = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # The package around it is not there.
        return None
    for place in (spec and spec.submodule_search_locations) or ():
        if (Path(place) / file).exists():
            return Path(place) / file
    return None


def required(package: str, file: str) -> Path:
    """The same; where it is not installed the test skips, or in CI fails, as for programs (tests/services.py)."""
    path = found(package, file)
    if path is None:
        services.absent(f"the package that has {package}/{file} is not installed (requirements-models.txt)")
    return path
