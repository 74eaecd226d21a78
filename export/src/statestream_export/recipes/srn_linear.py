"""The simple recurrent network by hand: all weights 1, no activation, so that every number can be checked."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from statestream_export import Export, State, export
from statestream_export.pictures import table
from statestream_export.recipe import Card, Target
from statestream_export.training import Curve, Run

SEQUENCE = [[1.0, 1.0], [1.0, 1.0], [2.0, 2.0]]
EXPECTED = [4.0, 12.0, 32.0]


class LinearSrn(nn.Module):
    """h' = Wx + Uh, y = Vh', all ones: x [B, 2] float32 → y [B, 2], state h [B, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = nn.Linear(2, 2, bias=False)
        self.kept = nn.Linear(2, 2, bias=False)
        self.given = nn.Linear(2, 2, bias=False)
        for parameter in self.parameters():
            nn.init.ones_(parameter).requires_grad_(False)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """One step."""
        h = self.taken(x) + self.kept(h)
        return self.given(h), h


class SrnLinear:
    """Nothing is trained; (1, 1), (1, 1), (2, 2) must give 4, 12, 32."""

    card = Card(
        "srn-linear",
        task="a recurrent network that can be checked by hand",
        data="(1, 1), (1, 1), (2, 2)",
        cell="own cell 2→2→2, weights 1, no activation",
        kind="session",
        mode="synchronous sequence to sequence",
        target=Target("largest_error", "==", 0),
    )

    def data(self, run: Run) -> Tensor:
        """The sequence [3, 1, 2]."""
        return torch.tensor(SEQUENCE)[:, None]

    def module(self, data: Tensor) -> LinearSrn:
        """The finished model."""
        return LinearSrn()

    def train(self, module: LinearSrn, data: Tensor, run: Run) -> Curve:
        """There is nothing to learn."""
        return Curve()

    def metrics(self, module: LinearSrn, data: Tensor) -> dict[str, float | list[float]]:
        """The outputs, both alike, and how far the worst is off."""
        said = self._said(module, data)
        wanted = torch.tensor(EXPECTED)[:, None]
        return {"outputs": said[:, 0].tolist(), "largest_error": float((said - wanted).abs().max())}

    def picture(self, module: LinearSrn, data: Tensor) -> Figure:
        """Inputs and outputs, step by step."""
        values = torch.cat([data[:, 0], self._said(module, data)], 1).numpy()
        return table("srn-linear: three steps", values, ["step 1", "step 2", "step 3"], ["x₁", "x₂", "y₁", "y₂"])

    def export(self, module: LinearSrn, data: Tensor, folder: Path) -> list[Export]:
        """One step a run."""
        return [
            export(
                module,
                {"x": data[0]},
                states={"h": State(torch.zeros(1, 2))},
                path=folder / "model.onnx",
                description="A recurrent network whose weights are all 1: (1, 1), (1, 1), (2, 2) gives 4, 12, 32.",
            )
        ]

    def _said(self, module: LinearSrn, data: Tensor) -> Tensor:
        h, said = torch.zeros(1, 2), []
        for x in data:
            y, h = module(x, h)
            said.append(y[0])
        return torch.stack(said)


recipe = SrnLinear()
