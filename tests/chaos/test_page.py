"""docs/reliability.md says what the runs said."""

from __future__ import annotations

import json

from tests.chaos import tables


def test_the_tables_are_those_of_the_figures() -> None:
    page = tables.PAGE.read_text()
    figures = json.loads(tables.FIGURES.read_text())
    assert tables.filled(page, figures) == page, "python -m tests.chaos.tables writes the page anew"
    assert all(figures[name]["lost"] == figures[name]["repeated"] == 0 for name in tables.RUNS if name in figures)


def test_every_choice_names_a_test() -> None:
    files = tables.PAGE.parents[1].glob("tests/chaos/test_*.py")
    names = [line for file in files for line in file.read_text().splitlines() if "def test_" in line]
    assert [choice for _, choice in tables.RUNS.values() if not any(choice in name for name in names)] == []
