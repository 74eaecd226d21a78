"""Figures of forecasts, on series made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from statestream_export import accuracy


def test_an_error_is_measured_by_the_mean_change_of_its_own_history() -> None:
    histories = [np.array([1.0, 2, 4, 1]), np.array([10.0, 30])]  # changes 1, 2, 3: 2 on average; and 20
    truth, forecast = np.array([[5.0, 7], [50, 70]]), np.array([[4.0, 4], [50, 60]])
    found = accuracy.mase(forecast, truth, histories)
    assert found.tolist() == [2 / 2, 5 / 20]


def test_a_season_compares_with_the_same_place_of_the_one_before() -> None:
    histories = [np.array([1.0, 10, 3, 13])]  # 2 and 3 apart from two steps before
    assert accuracy.mase(np.array([[0.0]]), np.array([[5.0]]), histories, season=2).tolist() == [2.0]


def test_a_history_that_never_moves_has_no_scale() -> None:
    assert np.isnan(accuracy.mase(np.array([[1.0]]), np.array([[2.0]]), [np.array([3.0, 3, 3])])).all()


def test_the_loss_of_the_median_is_the_error_over_what_came() -> None:
    truth = np.array([[10.0, 30]])
    quantiles = np.array([[[8.0, 5], [33, 40]]])
    found = accuracy.quantile_loss(quantiles, truth, [0.5, 0.9])
    assert found[0] == pytest.approx((2 + 3) / 40)
    # Of the 0.9 quantile: 5 too low costs 0.9 each, 10 too high 0.1 each, twice.
    assert found[1] == pytest.approx(2 * (0.9 * 5 + 0.1 * 10) / 40)


def test_what_lies_on_a_bound_is_covered() -> None:
    truth = np.array([[1.0, 2], [3, 4]])
    assert accuracy.coverage(truth - 1, truth, truth) == 1
    assert accuracy.coverage(np.full((2, 2), 2.0), np.full((2, 2), 3.0), truth) == 0.5
