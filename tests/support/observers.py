"""Models of torch whose callers send observations: they expect something, have gaps filled, are told the time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from statestream_export import State, export, gaussian
from tests.support import torchlib


class Heard(nn.Module):
    """A Gaussian of the next value around 0.8 of this one, wider where that is large."""

    def forward(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return 0.8 * x, 0.5 + 0.1 * torch.abs(x), x[:, -1] + 0 * s


class Plain(nn.Module):
    """Half of both values, and what it was given: the next ones, and what a gap was filled with."""

    def forward(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return 0.5 * x, x + 0.0, x[:, -1] + 0 * s


class Clock(nn.Module):
    """What it was told of the time between steps, and the value."""

    def forward(self, x: Tensor, dt: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([x, dt], -1), dt[:, -1] + 0 * s


def write(folder: Path) -> Path:
    """Writes "heard", "plain", "refuse", "hold", "predict", "partly" and "clock" as MODELS_DIR/<name>/1."""
    torchlib.share()
    torch.manual_seed(0)
    one, two = torch.randn(4, 12, 1), torch.randn(4, 12, 2)
    export(
        Heard(),
        {"x": one},
        states={"s": State(torch.zeros(1, 1))},
        outputs=["loc", "scale"],
        time_axis=1,
        head={"value": gaussian("loc", "scale")},
        feedback={"value": "x"},
        score_past=31,
        path=folder / "heard" / "1",
    )
    for name, missing, fed in (
        ("plain", {}, "x"),
        ("refuse", {"x": "refuse"}, "x"),
        ("hold", {"x": "hold"}, "x"),
        ("predict", {"x": "predict"}, "x"),
    ):
        export(
            Plain(),
            {"x": two},
            states={"s": State(torch.zeros(1, 2))},
            outputs=["y", "seen"],
            time_axis=1,
            feedback={"y": fed},
            missing=missing,  # type: ignore[arg-type]
            columns={"x": ["a", "b"]},
            score_past=31,
            path=folder / name / "1",
        )
    export(
        Partly(),
        {"x": two},
        states={"s": State(torch.zeros(1, 2))},
        outputs=["y", "seen"],
        time_axis=1,
        feedback={"y": ("x", ["a"])},
        missing={"x": "predict"},
        columns={"x": ["a", "b"]},
        path=folder / "partly" / "1",
    )
    export(
        Clock(),
        {"x": one, "dt": torch.rand(4, 12, 1)},
        states={"s": State(torch.zeros(1, 1))},
        outputs=["y"],
        time_axis=1,
        elapsed={"dt": ("min", 5.0)},
        path=folder / "clock" / "1",
    )
    return folder


class Partly(nn.Module):
    """Half of the first value, which is fed back; the second is known."""

    def forward(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return 0.5 * x[..., :1], x + 0.0, x[:, -1] + 0 * s
