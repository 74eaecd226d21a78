"""torch's LSTM layer with random weights, in every layout."""

from __future__ import annotations

from torch import nn

from statestream_export.recipes.layers import LayerRecipe

recipe = LayerRecipe(nn.LSTM, [(10, 20, 2), (100, 20, 4)])
