"""A GRU that says how much each shop sells tomorrow, and how sure it is; its scale is part of the model."""

import numpy as np
import pandas as pd
import torch
from torch import nn

from statestream_export import State, export, gaussian
from statestream_export.training import epochs

SHOPS, DAYS = 40, 120


def sales() -> pd.DataFrame:
    """A long table with Nixtla's names: unique_id, ds, y. A week's rhythm, a level for each shop, and chance."""
    rng = np.random.default_rng(0)
    day = np.arange(DAYS)
    level = rng.uniform(40, 60, SHOPS)[:, None]
    y = level + 10 * np.sin(2 * np.pi * day / 7) + rng.normal(0, 2, (SHOPS, DAYS))
    ids = [f"shop-{number:02}" for number in range(SHOPS)]
    dates = pd.date_range("2026-01-01", periods=DAYS)
    return pd.DataFrame({"unique_id": np.repeat(ids, DAYS), "ds": np.tile(dates, SHOPS), "y": y.ravel()})


class Demand(nn.Module):
    def __init__(self, mean, deviation):
        super().__init__()
        self.mean, self.deviation = mean, deviation
        self.cell, self.head = nn.GRU(1, 24, batch_first=True), nn.Linear(24, 2)

    def forward(self, y, h):
        out, h = self.cell((y - self.mean) / self.deviation, h)
        loc, scale = self.head(out).split(1, -1)
        return self.mean + self.deviation * loc, self.deviation * (nn.functional.softplus(scale) + 0.01), h


def write(table: pd.DataFrame, path: str) -> None:
    """Trains for some seconds on the table and writes the model."""
    torch.manual_seed(0)
    y = torch.tensor(table["y"].to_numpy(np.float32).reshape(SHOPS, -1, 1))
    model = Demand(float(y.mean()), float(y.std()))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in epochs(120, "demand"):
        loc, scale, _ = model(y[:, :-1], torch.zeros(1, SHOPS, 24))
        loss = -torch.distributions.Normal(loc, scale).log_prob(y[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    export(
        model,
        {"y": y},
        states={"h": State(torch.zeros(1, 1, 24), batch_axis=1)},
        outputs=["loc", "scale"],
        time_axis=1,
        head={"next": gaussian("loc", "scale")},
        feedback={"next": "y"},
        columns={"y": ["y"]},
        path=path,
    )
