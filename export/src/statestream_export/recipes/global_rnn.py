"""Global RNN: one LSTM for many yearly series, which gives quantiles of the next six years at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from statestream_export import Export, State, export, quantiles
from statestream_export.datasets.series import Several, m1_yearly
from statestream_export.recipe import Card, Target
from statestream_export.recipes import levels, yearly
from statestream_export.recipes.yearly import BEGIN, LEVELS, MIDDLE
from statestream_export.training import Curve, Run, falling

HORIZON = 6


class GlobalRnn(nn.Module):
    """y [B, T, 1] → quantiles of the next six [B, T, 6, 1, 7]; states past [B, 7], h and c [1, B, hidden].

    After Smyl: level and scale of a series are carried as state, an LSTM that all series share says where it goes from
    there, and the quantile loss trains it for all six years at once.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.levels = levels.Levels()
        self.lstm = nn.LSTM(levels.FEATURES, hidden, batch_first=True)
        self.dropout = nn.Dropout(0.2)
        self.middle = nn.Linear(hidden, HORIZON)
        self.spread = nn.Sequential(
            nn.Linear(hidden + levels.FEATURES, hidden), nn.Tanh(), nn.Linear(hidden, HORIZON * (len(LEVELS) - 1))
        )
        nn.init.normal_(self.middle.weight, std=0.01)
        nn.init.zeros_(self.middle.bias)

    def forward(self, y: Tensor, past: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All in the units of y; scaling happens inside."""
        level = self.levels(y, past)
        hidden, (h, c) = self.lstm(level.features, (h, c))
        grows = torch.arange(1, HORIZON + 1, dtype=y.dtype).sqrt()
        middle = (self.middle(self.dropout(hidden)) * grows)[..., None]
        # The bands learn from what the median learnt, and not the other way round.
        seen = torch.cat([hidden.detach(), level.features], -1)
        gaps = torch.unflatten(functional.softplus(self.spread(seen)), -1, (HORIZON, len(LEVELS) - 1)) * grows[:, None]
        below = -gaps[..., :MIDDLE].cumsum(-1).flip(-1)
        above = gaps[..., MIDDLE:].cumsum(-1)
        around = middle + torch.cat([below, torch.zeros_like(middle), above], -1)
        return (y[..., None] + level.change[..., None] * around)[..., None, :], level.past, h, c


class GlobalRnnRecipe:
    """Trains on all years but the last six of each series, from every year on; is judged on those."""

    card = Card(
        "global-rnn",
        task="forecast six years of many series at once",
        data="M1 yearly, 181 series; the last 6 years of each held out",
        cell="LSTM 7→64, level and scale as state",
        kind="session",
        mode="synchronous sequence to sequence",
        target=Target("mase", "<=", 3.36),
    )
    rate = 0.005

    def __init__(self, hidden: int = 64, epochs: int = 120) -> None:
        """With the sizes that did best on the last six years of what trains (tools/choose_yearly.py)."""
        self.hidden, self.epochs = hidden, epochs

    def data(self, run: Run) -> Several:
        """All series; `metrics` alone looks at their last six years."""
        return m1_yearly(run.source)

    def module(self, data: Several) -> GlobalRnn:
        """One for all series."""
        return GlobalRnn(self.hidden)

    def train(self, module: GlobalRnn, data: Several, run: Run) -> Curve:
        """All series in one batch, all years in it; errors by the mean absolute change of the series."""
        past = yearly.batch(data.histories)
        truths, known = past.ahead(HORIZON)
        known[:, :BEGIN] = False
        weight = known / known.sum()
        optimizer = torch.optim.AdamW(module.parameters(), lr=self.rate)
        rate = falling(optimizer, run.epochs(self.epochs))
        wanted = torch.tensor(LEVELS)
        start = self._start(module, len(past.y))
        with torch.no_grad():
            change = torch.maximum(module.levels(past.y, start[0]).change, past.change[:, None, None])

        def epoch() -> float:
            said, *_ = module(past.y, *start)
            error = (truths[..., None] - said[..., 0, :]) / change[..., None]
            loss = (torch.maximum(wanted * error, (wanted - 1) * error).sum(-1) * weight).sum()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            rate.step()
            return float(loss.item())

        return run.fit(module, epoch, epochs=self.epochs)

    def forecast(self, module: GlobalRnn, data: Several) -> np.ndarray:
        """Quantiles behind each history, [N, 6, 7]."""
        past = yearly.batch(data.histories)
        with torch.no_grad():
            said, *_ = module(past.y, *self._start(module, len(past.y)))
        return past.ends(said)[:, :, 0].numpy().astype(np.float64)

    def metrics(self, module: GlobalRnn, data: Several) -> dict[str, float | str]:
        """Of the held-out years."""
        return yearly.figures(data, self.forecast(module, data))

    def picture(self, module: GlobalRnn, data: Several) -> Figure:
        """Six of the series."""
        return yearly.fan(f"{self.card.name}: six years ahead, {data.source}", data, self.forecast(module, data))

    def export(self, module: GlobalRnn, data: Several, folder: Path) -> list[Export]:
        """One file; a session is one series. Further than six years it goes on from its own median."""
        past, h, c = self._start(module, 1)
        return [
            export(
                module,
                {"y": yearly.example(data)},
                states={"past": State(past), "h": State(h, batch_axis=1), "c": State(c, batch_axis=1)},
                outputs=["quantiles"],
                time_axis=1,
                head=quantiles(LEVELS),
                horizon_axis={"quantiles": 2},
                feedback={"y": "y"},
                path=folder / "model.onnx",
                description="Forecasts quantiles of a yearly series' next six years; a year a step.",
            )
        ]

    def _start(self, module: GlobalRnn, count: int) -> tuple[Tensor, Tensor, Tensor]:
        state = torch.zeros(1, count, self.hidden)
        return torch.zeros(count, levels.WIDTH), state, state


recipe = GlobalRnnRecipe()
