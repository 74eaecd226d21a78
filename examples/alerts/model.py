"""A GRU that says what carbon dioxide the next week brings, and how sure it is of that."""

import numpy as np
import statsmodels.api as sm
import torch
from torch import nn

from statestream_export import State, export, gaussian
from statestream_export.training import epochs

TRAINED = 1700


def weeks():
    """Mauna Loa, 1958 to 2001: the dates, ppm [T, 1] with NaN where nothing was measured, place in the year [T, 2]."""
    table = sm.datasets.co2.load_pandas().data["co2"]
    angle = 2 * np.pi * (table.index.day_of_year.to_numpy() + 7) / 365.25  # Of the week to come.
    season = np.stack([np.sin(angle), np.cos(angle)], -1).astype(np.float32)
    return table.index, table.to_numpy(np.float32)[:, None], season


class Air(nn.Module):
    """Learns the change from week to week; `last` is the value before."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRU(3, 16, batch_first=True), nn.Linear(16, 2)

    def forward(self, co2, season, h, last):
        change = co2 - torch.cat([last[:, None], co2[:, :-1]], 1)
        out, h = self.cell(torch.cat([change, season], -1), h)
        loc, scale = self.head(out).split(1, -1)
        return co2 + loc, nn.functional.softplus(scale) + 0.05, h, co2[:, -1]


def write(path: str) -> None:
    """Trains for some seconds on the first 1,700 weeks and writes the model."""
    torch.manual_seed(1)
    _, ppm, season = weeks()
    known = np.flatnonzero(np.isfinite(ppm[:, 0]))
    whole = np.interp(np.arange(len(ppm)), known, ppm[known, 0]).astype(np.float32)[:, None]
    windows = np.stack([np.arange(begin, begin + 105) for begin in range(0, TRAINED - 105, 52)])
    x, c = torch.tensor(whole[windows]), torch.tensor(season[windows])
    model = Air()
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in epochs(60, "air"):
        loc, scale, *_ = model(x[:, :-1], c[:, :-1], torch.zeros(1, len(windows), 16), x[:, 0])
        loss = -torch.distributions.Normal(loc, scale).log_prob(x[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    export(
        model,
        {"co2": x[:8], "season": c[:8]},
        states={"h": State(torch.zeros(1, 1, 16), batch_axis=1), "last": State(torch.full((1, 1), 316.0))},
        outputs=["loc", "scale"],
        time_axis=1,
        head={"ppm": gaussian("loc", "scale")},
        feedback={"ppm": "co2"},
        ahead=["season"],
        missing={"co2": "predict"},
        path=path,
    )
