"""Yearly: what the recipes on M1 yearly share: one batch of series, figures, a fan. No recipe lives here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from statestream_export import accuracy
from statestream_export.datasets.series import Several

LEVELS: Final = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
"""Of the quantiles: the bands of 95, 80 and 50 %, and the median."""
MIDDLE: Final = LEVELS.index(0.5)
BEGIN: Final = 2
"""The steps from here on are learnt from: before them, nothing is known of a series' changes."""
_SHOWN: Final = 6


class Batch(NamedTuple):
    """Histories of different lengths, side by side.

    Attributes:
        y: [N, T, 1] float32; behind a history's end its last value.
        lengths: [N] int64.
        known: [N, T] whether the history goes so far.
        change: [N] the mean absolute change of each, which errors are measured by.
    """

    y: Tensor
    lengths: Tensor
    known: Tensor
    change: Tensor

    def ahead(self, steps: int) -> tuple[Tensor, Tensor]:
        """For each step the next ones, [N, T, steps], and whether the history goes so far."""
        count, length, _ = self.y.shape
        values = torch.cat([self.y[..., 0], self.y[:, -1].expand(count, steps)], 1)
        known = torch.cat([self.known, torch.zeros(count, steps, dtype=torch.bool)], 1)
        return values.unfold(1, steps, 1)[:, 1 : length + 1], known.unfold(1, steps, 1)[:, 1 : length + 1]

    def ends(self, steps: Tensor) -> Tensor:
        """[N, ...] of [N, T, ...]: what stands at the last step of each."""
        return steps[torch.arange(len(steps)), self.lengths - 1]


def batch(histories: Sequence[np.ndarray]) -> Batch:
    """Histories [T] as one batch."""
    length = max(map(len, histories))
    y = np.stack([np.pad(past, (0, length - len(past)), mode="edge") for past in histories])
    lengths = torch.tensor([len(past) for past in histories])
    change = torch.tensor([float(np.abs(np.diff(past)).mean()) for past in histories])
    known = torch.arange(length)[None] < lengths[:, None]
    return Batch(torch.tensor(y, dtype=torch.float32)[..., None], lengths, known, change)


def example(data: Several) -> Tensor:
    """Some series, as long as the shortest."""
    shortest = min(map(len, data.histories))
    return torch.tensor(np.stack([past[:shortest] for past in data.histories[:64]]), dtype=torch.float32)[..., None]


def figures(data: Several, quantiles: np.ndarray) -> dict[str, float | str]:
    """What quantiles [N, h, len(LEVELS)] of the held-out years are worth; the median is the forecast."""
    truths, wql = data.truths, accuracy.quantile_loss(quantiles, data.truths, LEVELS)
    return {
        "data": data.source,
        "series": str(len(data.names)),
        "mase": float(np.mean(accuracy.mase(quantiles[..., MIDDLE], truths, data.histories))),
        "mase_last_value": float(
            np.mean(accuracy.mase(np.stack([past[-1:] for past in data.histories]), truths, data.histories))
        ),
        "weighted_quantile_loss": float(wql.mean()),
        "coverage_80": accuracy.coverage(quantiles[..., 1], quantiles[..., -2], truths),
        "coverage_95": accuracy.coverage(quantiles[..., 0], quantiles[..., -1], truths),
    }


def fan(title: str, data: Several, quantiles: np.ndarray) -> Figure:
    """Some series with the fan of their last years: the bands of 50, 80 and 95 %, the median, and what came."""
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    figure.suptitle(title)
    places = np.linspace(0, len(data.names) - 1, min(_SHOWN, len(data.names))).astype(int)
    grid = figure.subplots(2, -(-len(places) // 2), squeeze=False)
    for axes, at in zip(grid.flat, places.tolist(), strict=False):
        past, came = data.histories[at], data.truths[at]
        ahead = np.arange(len(past), len(past) + data.horizon)
        axes.plot(past, color="black", linewidth=1)
        axes.plot(ahead, came, "k.", label="what came")
        for side, percent in enumerate((95, 80, 50)):
            low, high = quantiles[at, :, side], quantiles[at, :, -1 - side]
            axes.fill_between(ahead, low, high, color="tab:blue", alpha=0.2, linewidth=0, label=f"{percent} %")
        axes.plot(ahead, quantiles[at, :, MIDDLE], color="tab:blue", label="median")
        axes.set_title(data.names[at], fontsize="small")
        axes.ticklabel_format(style="sci", axis="y", scilimits=(-3, 4))
    grid.flat[0].legend(loc="upper left", fontsize="x-small")
    return figure
