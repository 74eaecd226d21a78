"""Where the time of a lone step goes, from marks that are laid out by hand."""

from __future__ import annotations

import pytest

from benchmarks.lone import PASSED, STAGES, stages


def test_stages_are_cut_at_the_marks_and_add_up() -> None:
    begin, marks, trips = 0, list[tuple[int, str]](), list[tuple[int, int]]()
    for _ in range(3):
        at = begin
        marks.append((at + 500, "write+"))  # Of something that came before: not of this step.
        for name, wait in zip(PASSED, (1000, 2000, 3000, 4000, 5000, 6000, 7000), strict=True):
            at += wait
            marks.append((at, name))
        trips.append((begin, at + 8000))
        begin = at + 10_000
    trips.append((begin, begin + 5))  # One without marks does not count.
    found = stages(marks, trips)
    assert [median for median, _, _ in found] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert sum(median for median, _, _ in found) == pytest.approx((trips[0][1] - trips[0][0]) / 1e3)
    assert len(found) == len(STAGES)
