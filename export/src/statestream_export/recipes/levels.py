"""Levels: the scale of a series and its drifts so far, held as state inside a graph. No recipe lives here."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

SHARES = (1 / 3, 1 / 8)
"""How much of a smoothed change is the newest one."""
WIDTH = 5 + len(SHARES)
"""Numbers of the state: count, first and last value, sums of |changes| and of |values|, the changes smoothed."""
FEATURES = 2 + len(SHARES) + 3


class Level(NamedTuple):
    """Where every step stands.

    Attributes:
        features: [B, T, FEATURES] for a layer: the same for a series and for a thousand times that series.
        change: [B, T, 1] the mean absolute change so far, above 0.
        size: [B, T, 1] the mean absolute value so far, above 0.
        past: [B, WIDTH] the state after the last step.
    """

    features: Tensor
    change: Tensor
    size: Tensor
    past: Tensor


class Levels(nn.Module):
    """y [B, T, 1] and the state [B, WIDTH], zeros at the start → `Level`. Nothing in it is trained.

    As Smyl's network carries level and trend from step to step ("A hybrid method of exponential smoothing and recurrent
    neural networks", 2020), so are these carried; but all steps of a chunk at once, as no weight depends on them.
    """

    def forward(self, y: Tensor, past: Tensor) -> Level:
        """Steps after those that made `past`."""
        y = y[..., 0]
        step = torch.cumsum(torch.ones_like(y), 1)  # 1, 2, … of this chunk
        number = past[:, :1] + step
        begun = past[:, :1] > 0
        first = torch.where(begun, past[:, 1:2], y[:, :1])
        before = torch.cat([torch.where(begun, past[:, 2:3], y[:, :1]), y], 1)
        change = before[:, 1:] - before[:, :-1]
        changes = number - 1
        moved = past[:, 3:4] + change.abs().cumsum(1)
        summed = past[:, 4:5] + y.abs().cumsum(1)
        size = summed / number + 1e-9
        # A series that hardly moved is not blown up.
        scale = torch.maximum(moved / changes.clamp(min=1), 1e-3 * size)
        ahead = step[0][:, None] - step[0][None]
        smoothed, carried = [change], []
        for place, share in enumerate(SHARES):
            kept = 1 - share
            weights = torch.where(ahead >= 0, share * kept ** ahead.clamp(min=0), torch.zeros_like(ahead))
            trend = change @ weights.T + past[:, 5 + place, None] * kept**step
            carried.append(trend[:, -1:])
            # What the smoothing began with, zero, is taken out again.
            smoothed.append(trend / (1 - kept**changes).clamp(min=share))
        smoothed.append((y - first) / changes.clamp(min=1))
        drifts = torch.stack(smoothed, -1) / scale[..., None]
        drifts = torch.sign(drifts) * torch.log1p(drifts.abs())
        others = [torch.log(y.abs() / scale + 1e-3) / 3 - 0.5, torch.log(number) / 3 - 0.5, torch.log1p(y.abs() / size)]
        features = torch.cat([drifts, torch.stack(others, -1)], -1)
        ends = [number, first.expand_as(y), y, moved, summed]
        last = torch.cat([*(each[:, -1:] for each in ends), *carried], 1)
        return Level(features, scale[..., None], size[..., None], last)
