"""torch's RNN layer with random weights, in every layout."""

from __future__ import annotations

from torch import nn

from statestream_export.recipes.layers import LayerRecipe

recipe = LayerRecipe(nn.RNN, [(20, 50, 2)])
