"""docs/security.md: every bad input has its test, which is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/security.md").read_text().partition("## Bad input")[2].splitlines()
    if line.startswith("| ") and not line.startswith(("| input", "| ---"))
]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[0][:40])
def test_a_bad_input_has_its_test(line: list[str]) -> None:
    assert len(line) == 3, line
    assert all(line), line
    places = [name.strip() for name in line[2].split(",")]
    folder = (ROOT / places[0]).parent
    for name in places:
        found = ROOT / name if name.startswith("tests/") else folder / name
        tests = [found] if found.is_file() else list(found.glob("test_*.py"))
        assert tests, f"{name} is not there"
        assert all(re.search(r"^ *(async )?def test_", test.read_text(), re.M) for test in tests), name


def test_the_page_has_what_the_sources_refuse() -> None:
    """A table that shrank would pass the test above."""
    assert len(LINES) >= 20
