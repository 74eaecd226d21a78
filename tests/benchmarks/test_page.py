"""docs/benchmarks.md says what the runs said."""

from __future__ import annotations

import re

import pytest

from benchmarks import figures, page
from benchmarks.pictures import PICTURES
from benchmarks.table import Row, Target, results


def test_the_tables_are_those_of_the_figures() -> None:
    written, known = figures.PAGE.read_text(), figures.load()
    assert set(known) == set(page.SECTIONS), "make bench ARGS=--docs and python -m benchmarks.soak --docs measure them"
    assert page.filled(written, known) == written, "python -m benchmarks.page writes the page anew"


def test_the_page_shows_the_pictures_that_there_are() -> None:
    pictures = {f"bench-{name}.png" for name in PICTURES}
    assert set(PICTURES) <= set(page.SECTIONS)
    assert set(re.findall(r"\(images/(bench-\w+\.png)\)", figures.PAGE.read_text())) == pictures
    assert {file.name for file in figures.IMAGES.glob("bench-*.png")} == pictures


def test_a_figure_that_differs_is_noticed() -> None:
    known = figures.load()
    known["ratios"]["figures"][0]["ratio"] += 1
    assert page.filled(figures.PAGE.read_text(), known) != figures.PAGE.read_text()


@pytest.mark.parametrize(
    ("target", "pairs", "reached"),
    [
        (Target(0.7), [(7, 10), (1, 10), (9, 10)], True),
        (Target(0.7), [(6, 10), (1, 10), (9, 10)], False),
        (Target(1.6, least=False), [(16, 10)], True),
        (Target(1.6, least=False), [(17, 10)], False),
        (Target(2, least=False, slack=2.0), [(2.9, 1.0)], True),
        (Target(2, least=False, slack=2.0), [(3.1, 1.0)], False),
        (None, [(1, 2)], None),
    ],
)
def test_a_row_is_judged_by_the_median_of_its_pairs(
    target: Target | None, pairs: list[tuple[float, float]], reached: bool | None
) -> None:
    row = Row("row", target, lambda: 0.0, lambda: 0.0, "ms", pairs)
    (result,) = results([row])
    assert result.reached is reached
    assert result.lowest <= result.ratio <= result.highest
    assert results([Row("not measured", None, lambda: 0.0, lambda: 0.0, "ms")]) == []
