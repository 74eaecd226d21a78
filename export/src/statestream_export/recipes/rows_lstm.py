"""Rows with an LSTM in the place of the RNN."""

from __future__ import annotations

from torch import nn

from statestream_export.recipes.rows import Rows


class RowsLstm(Rows):
    """The same data, gradients clipped and a rate that falls; smaller batches, fewer epochs, more to reach."""

    name = "rows-lstm"
    kind = nn.LSTM
    goal = 0.985
    rate = 3e-3
    batch = 32
    epochs = 10


recipe = RowsLstm()
