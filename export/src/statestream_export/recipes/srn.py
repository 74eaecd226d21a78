"""The simple recurrent network with tanh, three ways: own cell, nn.RNNCell and nn.RNN."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from statestream_export import Export, State, export
from statestream_export.pictures import table
from statestream_export.recipe import Card, Target
from statestream_export.recipes.srn_linear import SEQUENCE
from statestream_export.training import Curve, Run


class TanhSrn(nn.Module):
    """nn.RNN 2→2 and a Linear layer, all weights 1: x [B, T, 2] float32 → y [B, T, 2], state h [1, B, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(2, 2, bias=False, batch_first=True)
        self.given = nn.Linear(2, 2, bias=False)
        for parameter in self.parameters():
            nn.init.ones_(parameter).requires_grad_(False)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """All steps."""
        hidden, h = self.rnn(x, h)
        return self.given(hidden), h


class Srn:
    """Nothing is trained; the three ways must agree."""

    card = Card(
        "srn",
        task="a recurrent network three ways",
        data="(1, 1), (1, 1), (2, 2)",
        cell="RNN 2→2→2, weights 1, tanh",
        kind="session",
        mode="synchronous sequence to sequence",
        target=Target("largest_difference", "<=", 1e-6),
    )

    def data(self, run: Run) -> Tensor:
        """The sequence [1, 3, 2]."""
        return torch.tensor(SEQUENCE)[None]

    def module(self, data: Tensor) -> TanhSrn:
        """The finished model."""
        return TanhSrn()

    def train(self, module: TanhSrn, data: Tensor, run: Run) -> Curve:
        """There is nothing to learn."""
        return Curve()

    def metrics(self, module: TanhSrn, data: Tensor) -> dict[str, float | list[float]]:
        """The outputs of the layer, and the largest difference between any two of the three."""
        ways = self._ways(module, data)
        apart = max(float((first - second).abs().max()) for first in ways for second in ways)
        return {"outputs": ways[0][:, 0].tolist(), "largest_difference": apart}

    def picture(self, module: TanhSrn, data: Tensor) -> Figure:
        """The first output, three ways."""
        values = torch.stack([way[:, 0] for way in self._ways(module, data)]).numpy()
        return table(
            "srn: the first output", values, ["nn.RNN", "nn.RNNCell", "own cell"], ["step 1", "step 2", "step 3"]
        )

    def export(self, module: TanhSrn, data: Tensor, folder: Path) -> list[Export]:
        """The layer; any number of steps a run."""
        return [
            export(
                module,
                {"x": data},
                states={"h": State(torch.zeros(1, 1, 2), batch_axis=1)},
                time_axis=1,
                path=folder / "model.onnx",
                description="A recurrent network with tanh whose weights are all 1.",
            )
        ]

    def _ways(self, module: TanhSrn, data: Tensor) -> list[Tensor]:
        """The outputs [3, 2] of the layer, of torch's cell and of a cell written out."""
        layer, _ = module(data, torch.zeros(1, 1, 2))
        weights = dict(module.rnn.named_parameters())
        into, again = weights["weight_ih_l0"], weights["weight_hh_l0"]
        cell = nn.RNNCell(2, 2, bias=False)
        cell.load_state_dict({"weight_ih": into, "weight_hh": again})
        h, own = torch.zeros(1, 2), torch.zeros(1, 2)
        from_cell, from_own = [], []
        for x in data.unbind(1):
            h = cell(x, h)
            own = torch.tanh(x @ into.T + own @ again.T)
            from_cell.append(module.given(h)[0])
            from_own.append((own @ module.given.weight.T)[0])
        return [layer[0], torch.stack(from_cell), torch.stack(from_own)]


recipe = Srn()
