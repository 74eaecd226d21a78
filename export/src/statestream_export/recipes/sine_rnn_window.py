"""A noisy sine from a window of four values, read by an RNN; otherwise as sine-mlp."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from statestream_export.recipe import Card, Target
from statestream_export.recipes.sine_mlp import SineMlp

HIDDEN = 16


class LastOutput(nn.Module):
    """Reads a window one value after the other: [B, 4] → [B, 1] from the last output."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 1)

    def forward(self, window: Tensor) -> Tensor:
        """Every window starts from zeros; nothing is carried from one to the next."""
        start = torch.zeros(1, window.shape[0], HIDDEN)
        hidden, _ = self.rnn(window.unsqueeze(2), start)
        forecast: Tensor = self.head(hidden[:, -1])
        return forecast


class SineRnnWindow(SineMlp):
    """The same data, training and figure with another head."""

    card = Card(
        "sine-rnn-window",
        task="forecast the next value of a noisy sine from four",
        data="sin(.01 i) + N(0, .2), 1,000 points, the first 600 train",
        cell="RNN 1→16 over the window, the window kept as state",
        kind="session",
        mode="sequence to value",
        target=Target("mse_to_noise_floor", "<=", 1.75),
    )
    description = "Forecasts the next value of a noisy sine: an RNN reads this value and the three before it."

    def head(self) -> nn.Module:
        """The RNN and its last output."""
        return LastOutput()


recipe = SineRnnWindow()
