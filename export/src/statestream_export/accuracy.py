"""Accuracy: how far forecasts of many series are from what came, and how honest their bands are. Pure NumPy.

Series differ in length and in scale: histories are a list of float arrays [T], truths and forecasts are [N, h].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mase(forecast: np.ndarray, truth: np.ndarray, histories: Sequence[np.ndarray], season: int = 1) -> np.ndarray:
    """Mean absolute scaled error of each series, [N]: 1 is as far off as the seasonal naive was within the history.

    The scale is the mean absolute difference of the history `season` steps apart (Hyndman and Koehler, 2006). A history
    that never changes has none: nan.

    Args:
        forecast: [N, h].
        truth: [N, h].
        histories: N arrays [T], of more than `season` steps.
        season: How many steps apart.
    """
    scales = np.array([np.abs(past[season:] - past[:-season]).mean() for past in histories])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(scales > 0, np.abs(forecast - truth).mean(-1) / scales, np.nan)


def quantile_loss(quantiles: np.ndarray, truth: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Weighted quantile loss of each level, [Q]: twice the pinball loss of all, over the sum of what came.

    Of the median it is the sum of the absolute errors over that sum (Salinas and others, 2020).

    Args:
        quantiles: [N, h, Q].
        truth: [N, h].
        levels: The Q levels, between 0 and 1.
    """
    levels_ = np.asarray(levels)
    error = truth[..., None] - quantiles
    loss = np.maximum(levels_ * error, (levels_ - 1) * error)
    return np.asarray(2 * loss.sum((0, 1)) / np.abs(truth).sum())


def coverage(low: np.ndarray, high: np.ndarray, truth: np.ndarray) -> float:
    """How much of what came lay between two bounds, or on one, of all series and steps; each [N, h]."""
    return float(((low <= truth) & (truth <= high)).mean())
