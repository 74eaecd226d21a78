"""A noisy sine from a window of four values: the window is the session's state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from statestream_export import Export, State, export
from statestream_export.pictures import lines
from statestream_export.recipe import Card, Target
from statestream_export.training import Curve, Run

POINTS, TRAIN, WINDOW, NOISE = 1000, 600, 4, 0.2
FLOOR = NOISE**2


class Windowed(nn.Module):
    """Next value from this one and the three before: x [B, 1] → y [B, 1], state window [B, 3]."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
        """The window slides by one; before it is full, zeros stand for what is missing."""
        full = torch.cat([window, x], dim=1)
        return self.head(full), full[:, 1:]


@dataclass(frozen=True)
class Sine:
    """The series [1000] and its windows: seen [996, 4], following [996, 1], float32."""

    series: Tensor
    seen: Tensor
    following: Tensor


def noisy_sine() -> Sine:
    """sin(.01 i) + N(0, .2), i from 1 to 1,000, from torch's seed."""
    series = torch.sin(0.01 * torch.arange(1, POINTS + 1)) + NOISE * torch.randn(POINTS)
    return Sine(series, series.unfold(0, WINDOW, 1)[:-1], series[WINDOW:, None])


class SineMlp:
    """Adam .01, batches of 16 of the first 600 points."""

    card = Card(
        "sine-mlp",
        task="forecast the next value of a noisy sine from four",
        data="sin(.01 i) + N(0, .2), 1,000 points, the first 600 train",
        cell="Linear 4→10→1, the window kept as state",
        kind="session",
        mode="sequence to value",
        target=Target("mse_to_noise_floor", "<=", 1.75),
    )
    description = "Forecasts the next value of a noisy sine from this one and the three before it."

    def head(self) -> nn.Module:
        """What looks at the window."""
        return nn.Sequential(nn.Linear(WINDOW, 10), nn.ReLU(), nn.Linear(10, 1))

    def data(self, run: Run) -> Sine:
        """The series and its windows."""
        return noisy_sine()

    def module(self, data: Sine) -> Windowed:
        """Random weights from the run's seed."""
        return Windowed(self.head())

    def train(self, module: Windowed, data: Sine, run: Run) -> Curve:
        """Twenty epochs of the windows that end in the first 600 points; the noise forbids many more."""
        count = TRAIN - WINDOW
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)

        def epoch() -> float:
            total = 0.0
            for chosen in torch.split(torch.randperm(count), 16):
                loss = nn.functional.mse_loss(module.head(data.seen[chosen]), data.following[chosen])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                total += float(loss.item()) * len(chosen)
            return total / count

        return run.fit(module, epoch, epochs=20)

    def metrics(self, module: Windowed, data: Sine) -> dict[str, float]:
        """Mean squared error of the last 400 points; the noise alone makes .04, no forecast is below it."""
        error = nn.functional.mse_loss(module.head(data.seen[TRAIN - WINDOW :]), data.following[TRAIN - WINDOW :])
        return {"mse": float(error), "noise_floor": FLOOR, "mse_to_noise_floor": float(error) / FLOOR}

    def picture(self, module: Windowed, data: Sine) -> Figure:
        """The last 400 points and the forecasts."""
        places = torch.arange(TRAIN, POINTS)[:, None].float()
        return lines(
            f"{self.card.name}: the last 400 points",
            {
                "series": (torch.cat([places, data.series[TRAIN:, None]], 1).numpy(), "k."),
                "without noise": (torch.cat([places, torch.sin(0.01 * (places + 1))], 1).numpy(), "-"),
                "forecast": (torch.cat([places, module.head(data.seen[TRAIN - WINDOW :])], 1).numpy(), "-"),
            },
            xlabel="point",
            ylabel="value",
        )

    def export(self, module: Windowed, data: Sine, folder: Path) -> list[Export]:
        """One step a run; the server keeps the three values before."""
        return [
            export(
                module,
                {"x": data.series[:, None]},
                states={"window": State(torch.zeros(1, WINDOW - 1))},
                path=folder / "model.onnx",
                feedback={"y": "x"},
                description=self.description,
            )
        ]


recipe = SineMlp()
