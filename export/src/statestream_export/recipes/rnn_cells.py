"""Stacks of cells, stepped by hand: RNNCell 100→50→30 and LSTMCell 100→50→30, against torch's layers."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from statestream_export import Export, State, export
from statestream_export.pictures import table
from statestream_export.recipe import Card, Target
from statestream_export.training import Curve, Run

SIZES, STEPS, BATCH = (100, 50, 30), 10, 3
STATES = {"r1": SIZES[1], "r2": SIZES[2], "h1": SIZES[1], "c1": SIZES[1], "h2": SIZES[2], "c2": SIZES[2]}


class Cells(nn.Module):
    """Two stacks side by side, one step a run: x [B, 100] float32 → rnn [B, 30], lstm [B, 30].

    States: r1 [B, 50], r2 [B, 30] of the RNN cells; h1, c1 [B, 50], h2, c2 [B, 30] of the LSTM cells.
    """

    def __init__(self) -> None:
        super().__init__()
        first, second, third = SIZES
        self.rnn1, self.rnn2 = nn.RNNCell(first, second), nn.RNNCell(second, third)
        self.lstm1, self.lstm2 = nn.LSTMCell(first, second), nn.LSTMCell(second, third)

    def forward(
        self, x: Tensor, r1: Tensor, r2: Tensor, h1: Tensor, c1: Tensor, h2: Tensor, c2: Tensor
    ) -> tuple[Tensor, ...]:
        """One step."""
        r1 = self.rnn1(x, r1)
        r2 = self.rnn2(r1, r2)
        h1, c1 = self.lstm1(x, (h1, c1))
        h2, c2 = self.lstm2(h1, (h2, c2))
        return r2, h2, r1, r2, h1, c1, h2, c2


def as_layer(layer: nn.RNNBase, cell: nn.RNNCellBase) -> nn.RNNBase:
    """The layer, with the weights of the cell."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    layer.load_state_dict({f"{name}_l0": getattr(cell, name) for name in names})
    return layer


class RnnCells:
    """Random weights; what the cells say step by step must be what layers say at once."""

    card = Card(
        "rnn-cells",
        task="cells stepped by hand against layers run at once",
        data="random, from the seed",
        cell="RNNCell 100→50→30, LSTMCell 100→50→30",
        kind="session",
        mode="synchronous sequence to sequence",
        target=Target("largest_difference", "<=", 1e-5),
    )

    def data(self, run: Run) -> Tensor:
        """Random sequences [10, 3, 100]."""
        return torch.randn(STEPS, BATCH, SIZES[0])

    def module(self, data: Tensor) -> Cells:
        """Random weights from the run's seed."""
        return Cells()

    def train(self, module: Cells, data: Tensor, run: Run) -> Curve:
        """There is nothing to learn."""
        return Curve()

    def metrics(self, module: Cells, data: Tensor) -> dict[str, float]:
        """The largest difference of each stack, and of both."""
        rnn, lstm = self._differences(module, data)
        return {
            "rnn_difference": float(rnn.max()),
            "lstm_difference": float(lstm.max()),
            "largest_difference": float(torch.maximum(rnn, lstm).max()),
        }

    def picture(self, module: Cells, data: Tensor) -> Figure:
        """The difference at every step."""
        rnn, lstm = self._differences(module, data)
        return table(
            "rnn-cells: cells against layers",
            torch.stack([rnn, lstm]).numpy(),
            ["RNNCell", "LSTMCell"],
            [f"step {step + 1}" for step in range(STEPS)],
        )

    def export(self, module: Cells, data: Tensor, folder: Path) -> list[Export]:
        """One step a run, six states."""
        return [
            export(
                module,
                {"x": data[0]},
                states={name: State(torch.zeros(1, size)) for name, size in STATES.items()},
                outputs=["rnn", "lstm"],
                path=folder / "model.onnx",
                description="Two stacks of cells side by side, RNN and LSTM, with random weights.",
            )
        ]

    def _differences(self, module: Cells, data: Tensor) -> tuple[Tensor, Tensor]:
        """The largest difference at every step [10], of the RNN stack and of the LSTM stack."""
        states = [torch.zeros(BATCH, size) for size in STATES.values()]
        rnn, lstm = [], []
        for x in data:
            from_rnn, from_lstm, *states = module(x, *states)
            rnn.append(from_rnn)
            lstm.append(from_lstm)
        first, second, third = SIZES
        below, _ = as_layer(nn.RNN(first, second), module.rnn1)(data)
        above, _ = as_layer(nn.RNN(second, third), module.rnn2)(below)
        low, _ = as_layer(nn.LSTM(first, second), module.lstm1)(data)
        high, _ = as_layer(nn.LSTM(second, third), module.lstm2)(low)
        return (torch.stack(rnn) - above).abs().amax((1, 2)), (torch.stack(lstm) - high).abs().amax((1, 2))


recipe = RnnCells()
