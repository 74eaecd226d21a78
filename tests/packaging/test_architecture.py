"""ARCHITECTURE.md names every module, and names none that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
SOURCES: Final = [
    ROOT / side / "src" / package
    for side, package in (("client", "statestream"), ("server", "statestream_server"), ("export", "statestream_export"))
]
COVERED: Final = {"v1", "recipes", "datasets", "lessons"}
"""Folders that the page names as a whole."""


def _modules() -> Iterator[Path]:
    for source in SOURCES:
        for path in source.rglob("*.py"):
            if not (path.stem.startswith("__") or COVERED & set(path.relative_to(source).parts)):
                yield path


def test_every_module_is_named() -> None:
    rooms = PAGE.split("\n## Rooms\n")[1].split("\n## ")[0].split("```")[1]
    named = set(re.findall(r"\w+", rooms))
    assert len(named) > 100
    assert named >= COVERED
    assert not [str(path.relative_to(ROOT)) for path in _modules() if path.stem not in named]


def test_every_path_that_is_named_is_there() -> None:
    before = PAGE.split("\n## The path of a lone step\n")[0]  # That one is walked: tests/test_path.py.
    files = {path for source in SOURCES for path in source.rglob("*")}
    files |= {path for room in ("docs", "tests", "protos", "tools", "benchmarks") for path in (ROOT / room).rglob("*")}
    known = {f"/{path.relative_to(ROOT).with_suffix('')}/" for path in files}
    for name in sorted(set(re.findall(r"`([a-z_][a-z_0-9]*(?:/[a-z_0-9]+)+)(?:\.py)?(?:\.\w+)?`", before))):
        assert any(f"/{name}/" in path for path in known), f"{name} is nowhere"
