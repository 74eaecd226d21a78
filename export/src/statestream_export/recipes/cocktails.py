"""Cocktails: a matrix product, the smallest model there is; what each drink costs by what is in it."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from statestream_export import Export, export
from statestream_export.pictures import table
from statestream_export.recipe import Card, Target
from statestream_export.training import Curve, Run

INGREDIENTS = ["gin", "liqueur", "lemon juice", "cola"]
SHARES = {
    "Cuba Libre": [0.2, 0.45, 0.1, 0.25],
    "Long Island": [0.6, 0.3, 0.05, 0.05],
    "Tequila Sunrise": [0.3, 0.1, 0.3, 0.3],
}


class Mixer(nn.Module):
    """What each drink costs: prices [B, 4] float32 → cost [B, 3], the prices weighted by the shares."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(len(INGREDIENTS), len(SHARES), bias=False)
        self.mix.weight.requires_grad_(False).copy_(torch.tensor(list(SHARES.values())))

    def forward(self, prices: Tensor) -> Tensor:
        """The matrix product."""
        cost: Tensor = self.mix(prices)
        return cost


class Cocktails:
    """Nothing is trained: the shares are the weights."""

    card = Card(
        "cocktails",
        task="cost of three drinks from the prices of four ingredients",
        data="the three mixtures, written in the recipe",
        cell="Linear 4→3, fixed",
        kind="predict",
        mode="",
        target=Target("largest_error", "<=", 1e-6),
    )

    def data(self, run: Run) -> Tensor:
        """Prices of each ingredient alone, and of all together [5, 4]."""
        return torch.cat([torch.eye(4), torch.ones(1, 4)])

    def module(self, data: Tensor) -> Mixer:
        """The finished model."""
        return Mixer()

    def train(self, module: Mixer, data: Tensor, run: Run) -> Curve:
        """There is nothing to learn."""
        return Curve()

    def metrics(self, module: Mixer, data: Tensor) -> dict[str, float]:
        """The largest difference from the product in double precision."""
        exact = data.double() @ torch.tensor(list(SHARES.values()), dtype=torch.float64).T
        return {"largest_error": float((module(data) - exact).abs().max())}

    def picture(self, module: Mixer, data: Tensor) -> Figure:
        """The matrix."""
        return table("cocktails: shares", module.mix.weight.numpy(), list(SHARES), INGREDIENTS)

    def export(self, module: Mixer, data: Tensor, folder: Path) -> list[Export]:
        """One file without memory."""
        return [
            export(
                module,
                {"prices": data},
                outputs=["cost"],
                path=folder / "model.onnx",
                columns={"prices": INGREDIENTS, "cost": list(SHARES)},
                description="What three drinks cost, from the prices of their ingredients: a matrix product.",
            )
        ]


recipe = Cocktails()
