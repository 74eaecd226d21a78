"""The path of a lone step, as ARCHITECTURE.md has it: walked, and held to its limits."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.tracing import LEGS, Function, lone_steps

# What the path may be at most, by side; lower it when the path is shorter.
MOST_FUNCTIONS: Final = {"server": 45, "client": 47}
MOST_FILES: Final = {"server": 17, "client": 13}

_PAGE: Final = Path(__file__).parents[1] / "ARCHITECTURE.md"


def _listed() -> list[list[tuple[str, str]]]:
    """By leg, the names on the page and what is said of each."""
    section = _PAGE.read_text().split("\n## The path of a lone step\n")[1].split("\n## ")[0]
    parts = re.split(r"^\*\*(.+)\*\*$", section, flags=re.MULTILINE)
    assert tuple(parts[1::2]) == LEGS
    return [re.findall(r"^\d+\. `(\S+)`(.*)$", part, re.MULTILINE) for part in parts[2::2]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Counter[tuple[tuple[Function, ...], ...]]:
    return lone_steps(tmp_path_factory.mktemp("path"))


def test_the_page_says_what_a_lone_step_passes(seen: Counter[tuple[tuple[Function, ...], ...]]) -> None:
    listed = tuple(tuple(name for name, _ in leg) for leg in _listed())
    for side in (slice(1, 4), slice(0, 5, 4)):
        ways = Counter[tuple[tuple[str, ...], ...]]()
        for legs, times in seen.items():
            ways[tuple(tuple(map(str, leg)) for leg in legs[side])] += times
        usual = ways.most_common(1)[0][0]
        # What comes now and then, a timer or a sweep, is not the path.
        assert listed[side] == usual, "`python -m tests.support.tracing` prints the list as it is"


def test_every_name_on_the_page_is_there() -> None:
    for leg, names in zip(LEGS, _listed(), strict=True):
        root = "statestream" if leg.startswith("client") else "statestream_server"
        for name, _ in names:
            assert callable(_found(root, name)), name


def test_the_path_is_short() -> None:
    for side in MOST_FUNCTIONS:
        legs = [
            names for leg, names in zip(LEGS, _listed(), strict=True) if leg.startswith("client") == (side == "client")
        ]
        names = [name for leg in legs for name, _ in leg]
        assert len(names) <= MOST_FUNCTIONS[side], side
        assert len({_module(name) for name in names}) <= MOST_FILES[side], side


def _module(name: str) -> str:
    """The module in a name: its folders and file are in small letters, and something of it follows."""
    return re.split(r"\.(?=_?[A-Z])", name)[0] if re.search(r"\._?[A-Z]", name) else name.rsplit(".", 1)[0]


def _found(root: str, name: str) -> Any:
    parts = name.split(".")
    for package in (root, "statestream"):
        for end in range(len(parts) - 1, 0, -1):
            try:
                found: Any = importlib.import_module(".".join([package, *parts[:end]]))
            except ModuleNotFoundError:
                continue
            for part in parts[end:]:
                if part == "<locals>":
                    return found  # What a function makes has no name from outside.
                found = getattr(found, part) if not isinstance(found, property) else found.fget
            return found.fget if isinstance(found, property) else found
    raise AssertionError(f"{name} is nowhere")
