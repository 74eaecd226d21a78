"""Sunspots: an LSTM that forecasts next year's number of sunspots, one year a step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from statestream_export import Export, State, export
from statestream_export.recipe import Card, Target
from statestream_export.training import Curve, Run

VALIDATE_FROM = 1900
"""The years from here to `TEST_FROM` choose the epoch whose weights are kept."""
TEST_FROM = 1940
"""The years from here on are held out: nothing is fitted or chosen on them."""
SEASON = 11
"""The length of the solar cycle in years, for the seasonal forecast to compare with."""

LAYERS, HIDDEN, WINDOW = 2, 64, 66


class Forecaster(nn.Module):
    """Next year's number from this year's: x [B, T, 1] float32 → y [B, T, 1], states h, c [2, B, 64]."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: float, scale: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("scale", torch.tensor(scale))
        self.lstm = nn.LSTM(1, HIDDEN, LAYERS, batch_first=True, dropout=0.2)
        self.head = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The forecast is this year's number plus a change, all in sunspots; scaling happens inside."""
        scaled = (x - self.mean) / self.scale
        hidden, (h, c) = self.lstm(scaled, (h, c))
        return (scaled + self.head(hidden)) * self.scale + self.mean, h, c


@dataclass(frozen=True)
class Series:
    """The yearly mean numbers of sunspots, 1700 to 2008."""

    years: np.ndarray
    numbers: np.ndarray

    def at(self, year: int) -> int:
        """The index of a year."""
        return int(np.searchsorted(self.years, year))


def series() -> Series:
    """The series that ships with statsmodels; numbers float32 [309]."""
    from statsmodels.datasets import sunspots

    table = sunspots.load_pandas().data
    return Series(table["YEAR"].to_numpy(np.int64), table["SUNACTIVITY"].to_numpy(np.float32))


def forecasts(module: Forecaster, numbers: np.ndarray) -> np.ndarray:
    """One-step forecasts, streamed from the first year: entry i forecasts year i + 1; float32 [len]."""
    start = torch.zeros(LAYERS, 1, HIDDEN)
    with torch.no_grad():
        answer, _, _ = module(torch.from_numpy(numbers)[None, :, None], start, start)
    return np.asarray(answer[0, :, 0])


def rmse(forecast: np.ndarray, truth: np.ndarray) -> float:
    """Root of the mean squared error, in sunspots."""
    return float(np.sqrt(np.mean((forecast - truth) ** 2)))


class Sunspots:
    """Trains on 1700–1899, chooses the epoch on 1900–1939, is judged on 1940–2008."""

    card = Card(
        "sunspots",
        task="forecast next year's number of sunspots",
        data="statsmodels sunspots, yearly 1700-2008; 1940-2008 held out",
        cell="LSTM 1→64 ×2",
        kind="session",
        mode="synchronous sequence to sequence",
        target=Target("rmse_to_best_baseline", "<", 0.8),
    )

    def data(self, run: Run) -> Series:
        """The whole series; `metrics` alone looks at the held-out years."""
        return series()

    def module(self, data: Series) -> Forecaster:
        """Scaled by the mean and spread of the training years."""
        past = data.numbers[: data.at(VALIDATE_FROM)]
        return Forecaster(float(past.mean()), float(past.std()))

    def train(self, module: Forecaster, data: Series, run: Run) -> Curve:
        """All windows of 66 years in one batch; random amplitude and noise make up for a short series."""
        past = data.numbers[: data.at(VALIDATE_FROM)]
        starts = range(0, len(past) - WINDOW, 3)
        windows = torch.from_numpy(np.stack([past[at : at + WINDOW + 1] for at in starts]))[..., None]
        optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=1e-2)
        zeros = torch.zeros(LAYERS, len(windows), HIDDEN)
        first, last = data.at(VALIDATE_FROM), data.at(TEST_FROM)

        def epoch() -> float:
            amplitude = torch.exp(0.2 * torch.randn(len(windows), 1, 1))
            varied = windows * amplitude + 3 * torch.randn(windows.shape)
            answer, _, _ = module(varied[:, :-1], zeros, zeros)
            # The first years of a window only warm the state up.
            loss = (((answer - varied[:, 1:]) / module.scale)[:, 10:] ** 2).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            return float(loss.item())

        def score() -> float:
            known = data.numbers[:last]
            return rmse(forecasts(module, known[:-1])[first - 1 :], known[first:])

        return run.fit(module, epoch, epochs=300, score=score)

    def metrics(self, module: Forecaster, data: Series) -> dict[str, float | str]:
        """Root mean squared errors of one-step forecasts of the held-out years, in sunspots."""
        first = data.at(TEST_FROM)
        truth = data.numbers[first:]
        model = rmse(forecasts(module, data.numbers[:-1])[first - 1 :], truth)
        last = rmse(data.numbers[first - 1 : -1], truth)
        seasonal = rmse(data.numbers[first - SEASON : -SEASON], truth)
        return {
            "held_out": f"{data.years[first]}-{data.years[-1]}",
            "rmse": model,
            "rmse_last_value": last,
            "rmse_seasonal": seasonal,
            "rmse_to_best_baseline": model / min(last, seasonal),
        }

    def picture(self, module: Forecaster, data: Series) -> Figure:
        """The held-out years, the one-step forecasts, and 24 years in closed loop from the middle."""
        first = data.at(TEST_FROM)
        middle, horizon = data.at(1984), 24
        state = torch.zeros(LAYERS, 1, HIDDEN)
        answer, h, c = module(torch.from_numpy(data.numbers[:middle])[None, :, None], state, state)
        step, loop = answer[:, -1:], []
        for _ in range(horizon):
            loop.append(float(step))
            step, h, c = module(step, h, c)
        figure = Figure(figsize=(9, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(data.years[first:], data.numbers[first:], "k.-", label="sunspots")
        axes.plot(data.years[first:], forecasts(module, data.numbers[:-1])[first - 1 :], label="one step ahead")
        axes.plot(data.years[middle : middle + horizon], loop, "--", label=f"{horizon} years from 1983, closed loop")
        axes.set(title="sunspots: held-out years", xlabel="year", ylabel="sunspots")
        axes.legend()
        return figure

    def export(self, module: Forecaster, data: Series, folder: Path) -> list[Export]:
        """One file; a session is one series, its forecast feeds y back into x."""
        state = State(torch.zeros(LAYERS, 1, HIDDEN), batch_axis=1)
        example = torch.from_numpy(data.numbers)[None, :, None]
        return [
            export(
                module,
                {"x": example},
                states={"h": state, "c": state},
                outputs=["y"],
                time_axis=1,
                path=folder / "model.onnx",
                columns={"x": ["sunspots"], "y": ["sunspots_next_year"]},
                feedback={"y": "x"},
                description="Forecasts next year's number of sunspots from the years so far; one year a step.",
            )
        ]


recipe = Sunspots()
