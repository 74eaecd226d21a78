"""Linear: a straight line through noisy points."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from statestream_export import Export, export
from statestream_export.pictures import lines
from statestream_export.recipe import Card, Target
from statestream_export.training import Curve, Run

SLOPE, OFFSET, NOISE, COUNT = 5.0, 7.0, 0.25, 256


@dataclass(frozen=True)
class Points:
    """Places x [256, 1] from -1 to 1 and values y [256, 1], float32."""

    x: Tensor
    y: Tensor


class LinearRegression:
    """Stochastic gradient descent over all points, rate .01, 2,000 epochs."""

    card = Card(
        "linear",
        task="fit a straight line",
        data="y = 5x + 7 + U(0, 1/4), 256 points",
        cell="Linear 1→1",
        kind="predict",
        mode="",
        target=Target("largest_error", "<=", 0.1),
    )

    def data(self, run: Run) -> Points:
        """The noise has the mean 1/8, which the bias takes up."""
        x = torch.rand(COUNT, 1) * 2 - 1
        return Points(x, SLOPE * x + OFFSET + NOISE * torch.rand(COUNT, 1))

    def module(self, data: Points) -> nn.Linear:
        """Random weights from the run's seed."""
        return nn.Linear(1, 1)

    def train(self, module: nn.Linear, data: Points, run: Run) -> Curve:
        """Mean squared error."""
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)

        def epoch() -> float:
            loss = nn.functional.mse_loss(module(data.x), data.y)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            return float(loss.item())

        return run.fit(module, epoch, epochs=2000)

    def metrics(self, module: nn.Linear, data: Points) -> dict[str, float]:
        """Weight and bias, and how far the worse of them is from 5 and 7.125."""
        weight, bias = float(module.weight), float(module.bias)
        return {
            "weight": weight,
            "bias": bias,
            "largest_error": max(abs(weight - SLOPE), abs(bias - OFFSET - NOISE / 2)),
        }

    def picture(self, module: nn.Linear, data: Points) -> Figure:
        """The points and the line."""
        ends = torch.tensor([[-1.0], [1.0]])
        return lines(
            "linear: 256 points and the line",
            {
                "points": (torch.cat([data.x, data.y], 1).numpy(), "k."),
                "line": (torch.cat([ends, module(ends)], 1).numpy(), "-"),
            },
            xlabel="x",
            ylabel="y",
        )

    def export(self, module: nn.Linear, data: Points, folder: Path) -> list[Export]:
        """One file without memory."""
        return [
            export(
                module,
                {"x": data.x},
                path=folder / "model.onnx",
                description="A straight line, fitted to noisy points of y = 5x + 7.125.",
            )
        ]


recipe = LinearRegression()
