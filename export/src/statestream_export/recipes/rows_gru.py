"""Rows with a GRU in the place of the RNN."""

from __future__ import annotations

from torch import nn

from statestream_export.recipes.rows import Rows


class RowsGru(Rows):
    """The same data, training and figure."""

    name = "rows-gru"
    kind = nn.GRU


recipe = RowsGru()
