"""The comparison on M1 yearly: what is judged, on series made by hand; the page says what the run said."""

from __future__ import annotations

import io
import json
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks import monash
from statestream_export.datasets.files import Source
from statestream_export.datasets.series import Several
from statestream_export.recipes.yearly import LEVELS
from tests.export.sets import yearly_folder


def lines(*slopes: float) -> Several:
    """Straight lines, of which every change is the slope."""
    values = tuple(100 + slope * np.arange(20.0) for slope in slopes)
    return Several(tuple(map(str, slopes)), values, 6, "lines")


def test_a_last_value_that_stays_is_as_many_changes_off_as_steps_went_by() -> None:
    data = lines(1, -3, 10)
    said = np.stack([monash.naive(past, 6) for past in data.histories])
    assert monash.judged(said, data) == {"mase": pytest.approx(3.5)}  # 1, 2, …, 6 of its own changes


def test_a_series_counts_by_its_own_change_and_as_much_as_any_other() -> None:
    data = lines(1, 1000)
    said = data.truths[..., None] + np.array([[[2.0]], [[500.0]]])
    assert monash.judged(said, data) == {"mase": pytest.approx((2 + 0.5) / 2)}


def test_bands_are_judged_by_what_lay_between_them() -> None:
    data = lines(2)
    offsets = np.array([-9.0, -3, -1, 0, 1, 3, 9])
    said = data.truths[..., None] + offsets
    said[:, :2] += 5  # outside of 80 %, inside of 95 %
    found = monash.judged(said, data)
    assert found["mase"] == pytest.approx(2 / 6 * 5 / 2)
    assert found["coverage_80"] == pytest.approx(4 / 6)
    assert found["coverage_95"] == 1
    assert found["wql"] > 0
    assert len(offsets) == len(LEVELS)


def test_holt_and_ets_go_on_with_a_line() -> None:
    data = lines(5)
    draw = np.random.default_rng(0)
    past = data.histories[0] + draw.normal(0, 0.5, 14)
    for method in (monash.holt, monash.ets):
        assert np.abs(method(past, 6)[:, 0] - data.truths[0]).max() < 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_all_of_it_runs_through_a_server(tmp_path: Path) -> None:
    source = Source(yearly_folder(tmp_path / "data"), False, False, Console(file=io.StringIO()))
    found, (data, first) = monash.measure(tmp_path, source, seeds=1, quick=True)
    assert set(found["served"]) == set(first) == set(monash.RECIPES)
    assert set(found["classical"]) == set(monash.METHODS)
    for quantiles in first.values():
        assert quantiles.shape == (len(data.names), 6, len(LEVELS))
        assert (np.diff(quantiles, axis=-1) >= 0).all()
    assert "| **deepar**, served, 1 seeds |" in monash.table(found)


def test_the_page_says_what_the_run_said() -> None:
    found = json.loads(monash.FILE.read_text())
    page = monash.PAGE.read_text()
    assert monash.filled(page, found) == page, "python -m benchmarks.monash --docs writes it"
    assert (found["series"], found["horizon"]) == (181, 6)
    for name in monash.RECIPES:
        assert len(found["served"][name]["mase"]) == monash.SEEDS
        assert statistics.fmean(found["served"][name]["mase"]) <= 3.36
    assert found["classical"]["Holt (statsmodels)"]["mase"] == pytest.approx(3.362, abs=0.01)
    pictures = set(re.findall(r"\(images/(monash-[\w-]+\.png)\)", page))
    assert pictures == {f"monash-{name}.png" for name in monash.RECIPES}
    for picture in pictures:
        assert 5_000 < len(monash.FILE.with_name(picture).read_bytes()) < 150_000
