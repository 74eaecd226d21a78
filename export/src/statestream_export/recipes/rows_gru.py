"""Rows with a GRU in the place of the RNN."""

from __future__ import annotations

from torch import nn

from statestream_export.recipes.rows import Rows


class RowsGru(Rows):
    """The same data, gradients clipped and a rate that falls; smaller batches, fewer epochs, more to reach."""

    name = "rows-gru"
    kind = nn.GRU
    goal = 0.985
    rate = 3e-3
    batch = 32
    epochs = 10


recipe = RowsGru()
