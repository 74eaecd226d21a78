"""Rows with an LSTM in the place of the RNN."""

from __future__ import annotations

from torch import nn

from statestream_export.recipes.rows import Rows


class RowsLstm(Rows):
    """The same data, training and figure."""

    name = "rows-lstm"
    kind = nn.LSTM


recipe = RowsLstm()
