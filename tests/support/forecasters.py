"""Modules of torch that forecast: with a head and known inputs, over a window, without a head."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from statestream_export import State, export, gaussian, quantiles
from tests.support import torchlib

LEVELS = (0.1, 0.5, 0.9)


class Deep(nn.Module):
    """An autoregressive LSTM: the last value and the next step's calendar in, a Gaussian of the next value out.

    Without a matrix and a softplus behind the cell, so that its bits are the same in any batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(3, 8, batch_first=True)

    def forward(self, sales: Tensor, calendar: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        out, (h, c) = self.cell(torch.cat([sales, calendar], -1), (h, c))
        return 2 * out[..., :1], 1.2 + out[..., 1:2], h, c


class Ahead(nn.Module):
    """The last six values in a ring of its own; the next four, and quantiles of them, out."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        last = torch.cat([last[:, 1:], x], 1)
        y = self.head(last)[..., None]
        spread = torch.tensor([-1.0, 0.0, 2.0])
        return y, y[..., None] + spread, last


class Decay(nn.Module):
    """The next value is 0.8 of this one: what an AR(1) series expects."""

    def forward(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return 0.8 * x, s + 0 * x


class Blind(nn.Module):
    """Two steps ahead of two inputs, of neither of which it says that it is what comes."""

    def forward(self, x: Tensor, z: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return torch.stack([x, z], 1), s + 0 * x


def write(folder: Path) -> dict[str, nn.Module]:
    """Writes "deep", "ahead", "decay" and "blind" as MODELS_DIR/<name>/1; the modules."""
    torchlib.share()
    torch.manual_seed(3)
    modules: dict[str, nn.Module] = {"deep": Deep(), "ahead": Ahead(), "decay": Decay(), "blind": Blind()}
    zeros = torch.zeros(1, 1, 8)
    export(
        modules["deep"],
        {"sales": torch.randn(4, 12, 1), "calendar": torch.rand(4, 12, 2)},
        states={"h": State(zeros, batch_axis=1), "c": State(zeros, batch_axis=1)},
        outputs=["loc", "scale"],
        time_axis=1,
        head={"sold": gaussian("loc", "scale")},
        feedback={"sold": "sales"},
        ahead=["calendar"],
        columns={"sales": ["sales"], "calendar": ["weekend", "promotion"]},
        path=folder / "deep" / "1",
    )
    export(
        modules["ahead"],
        {"x": torch.randn(16, 1)},
        states={"last": State(torch.zeros(1, 6))},
        outputs=["y", "q"],
        head={"bands": quantiles(LEVELS, "q")},
        feedback={"y": "x"},
        horizon_axis={"y": 1, "q": 1},
        lookback=6,
        path=folder / "ahead" / "1",
    )
    export(
        modules["decay"],
        {"x": torch.randn(16, 1)},
        states={"s": State(torch.zeros(1, 1))},
        feedback={"y": "x"},
        path=folder / "decay" / "1",
    )
    export(
        modules["blind"],
        {"x": torch.randn(16, 1), "z": torch.randn(16, 1)},
        states={"s": State(torch.zeros(1, 1))},
        outputs=["y"],
        horizon_axis={"y": 1},
        path=folder / "blind" / "1",
    )
    return modules
