"""The page says what the file of runs says."""

from __future__ import annotations

from tests.simulation import totals
from tests.simulation.totals import Run


def test_the_page_has_the_figures_of_the_file() -> None:
    page = totals.PAGE.read_text()
    assert page == totals.rendered(page)


def test_a_seed_that_ran_twice_counts_once() -> None:
    runs = [Run(5, 10, 0, []), Run(0, 7, 0, []), Run(6, 2, 0, []), Run(100, 1, 0, [])]
    assert totals.distinct(runs) == 16
