"""DeepAR: an autoregressive LSTM that gives a distribution of the next value; on many yearly series."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, distributions, nn
from torch.nn import functional

from statestream.contract.signature import Head
from statestream_export import Export, State, export, gaussian, negative_binomial, student_t
from statestream_export.datasets.series import Several, m1_yearly
from statestream_export.recipe import Card, Target
from statestream_export.recipes import levels, yearly
from statestream_export.recipes.yearly import BEGIN
from statestream_export.training import Curve, Run, falling

Kind = Literal["gaussian", "student_t", "negative_binomial"]
OUTPUTS: Final[Mapping[Kind, tuple[str, ...]]] = {
    "gaussian": ("loc", "scale"),
    "student_t": ("df", "loc", "scale"),
    "negative_binomial": ("total_count", "mean"),
}
"""By head: the names of its parameters, in the order in which the module gives them."""
HEADS: Final[Mapping[Kind, Head]] = {
    "gaussian": gaussian(),
    "student_t": student_t(),
    "negative_binomial": negative_binomial(mean="mean"),
}


def distribution(kind: Kind, given: tuple[Tensor, ...]) -> distributions.Distribution:
    """Torch's own, of a module's outputs."""
    if kind == "gaussian":
        loc, scale = given
        return distributions.Normal(loc, scale)
    if kind == "student_t":
        df, loc, scale = given
        return distributions.StudentT(df, loc, scale)
    total, mean = given
    return distributions.NegativeBinomial(total, logits=torch.log(mean / total))


class DeepAR(nn.Module):
    """(y [B, T, 1], known [B, T, K]?, past [B, 7], h, c [layers, B, hidden]) → parameters [B, T, 1] each, new states.

    After Salinas and others, "DeepAR: probabilistic forecasting with autoregressive recurrent networks", 2020: the
    network sees values by the scale of their series, and its distribution is scaled back, both inside the graph. Here
    the scale is that of the series so far, and goes on as state; Gaussian and Student-t are those of the change to
    come, in mean absolute changes, so that a trend goes on; counts are those of the mean count.

    `known` is there where K is above 0: what is known of the step that is predicted.
    """

    def __init__(self, kind: Kind, known: int = 0, hidden: int = 32, layers: int = 1) -> None:
        super().__init__()
        self.kind, self.known = kind, known
        self.levels = levels.Levels()
        self.lstm = nn.LSTM(levels.FEATURES + known, hidden, layers, batch_first=True)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(hidden, len(OUTPUTS[kind]))

    def forward(self, y: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """All in the units of y."""
        known, (past, h, c) = others[: len(others) - 3], others[-3:]
        level = self.levels(y, past)
        hidden, (h, c) = self.lstm(torch.cat([level.features, *known], -1), (h, c))
        said = self.head(self.dropout(hidden))
        positive = functional.softplus(said) + 1e-3
        if self.kind == "negative_binomial":
            return positive[..., :1], positive[..., 1:] * (level.size + 0.1), level.past, h, c
        loc, scale = y + level.change * said[..., -2:-1], level.change * positive[..., -1:]
        df = (2 + positive[..., :1],) if self.kind == "student_t" else ()
        return (*df, loc, scale, level.past, h, c)

    def start(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The states of so many series before their first step."""
        state = torch.zeros(self.lstm.num_layers, count, self.lstm.hidden_size)
        return torch.zeros(count, levels.WIDTH), state, state

    def states(self) -> dict[str, State]:
        """The same as `export` takes them."""
        past, h, c = self.start(1)
        return {"past": State(past), "h": State(h, batch_axis=1), "c": State(c, batch_axis=1)}


def paths(
    module: DeepAR, y: Tensor, lengths: Tensor, horizon: int, count: int, known: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Draws paths in torch's own loop, [N, count, horizon]; what a server draws is compared with it.

    Args:
        module: The module.
        y: [N, T, 1] histories.
        lengths: [N] how long each is.
        horizon: Steps.
        count: Paths of each.
        known: What is known of the steps after the histories' ones, [N, T, K] and [N, horizon, K].
    """
    made = list[Tensor]()
    with torch.no_grad():
        # Up to its end each series for itself: behind it nothing may enter the state.
        ends = [
            module(y[at : at + 1, :length], *([known[0][at : at + 1, :length]] if known else []), *module.start(1))
            for at, length in enumerate(lengths.tolist())
        ]
        parts = len(OUTPUTS[module.kind])
        given = [torch.cat([end[part][:, -1:] for end in ends]).repeat_interleave(count, 0) for part in range(parts)]
        axes = (0, 1, 1)
        state = [
            torch.cat([end[parts + place] for end in ends], axis).repeat_interleave(count, axis)
            for place, axis in enumerate(axes)
        ]
        for step in range(horizon):
            made.append(distribution(module.kind, tuple(given)).sample())
            if step + 1 < horizon:
                beside = [known[1][:, step + 1 : step + 2].repeat_interleave(count, 0)] if known else []
                *given, past, h, c = module(made[-1], *beside, *state)
                state = [past, h, c]
    return torch.cat(made, 1)[..., 0].reshape(len(y), count, horizon)


class DeepARRecipe:
    """Trains on all years but the last six of each series; is judged on paths through those."""

    card = Card(
        "deepar",
        task="forecast many series, a distribution of the next year at a time",
        data="M1 yearly, 181 series; the last 6 years of each held out",
        cell="LSTM 7→16, Student-t, level and scale as state",
        kind="session",
        mode="synchronous sequence to sequence",
        target=Target("mase", "<", 4.603),
    )
    rate = 0.005

    def __init__(self, kind: Kind = "student_t", hidden: int = 16, epochs: int = 240) -> None:
        """With the head and the sizes that did best on the last six years of what trains (tools/choose_yearly.py)."""
        self.kind, self.hidden, self.epochs = kind, hidden, epochs

    def data(self, run: Run) -> Several:
        """All series; `metrics` alone looks at their last six years."""
        return m1_yearly(run.source)

    def module(self, data: Several) -> DeepAR:
        """One for all series."""
        return DeepAR(self.kind, hidden=self.hidden)

    def train(self, module: DeepAR, data: Several, run: Run) -> Curve:
        """The likelihood of each year, given those before; all series in one batch."""
        past = yearly.batch(data.histories)
        truths, known = past.ahead(1)
        known[:, :BEGIN] = False
        weight = known / known.sum()
        optimizer = torch.optim.AdamW(module.parameters(), lr=self.rate)
        rate = falling(optimizer, run.epochs(self.epochs))
        start = module.start(len(past.y))
        with torch.no_grad():
            # Densities by the change of the series, so that no series counts for its unit.
            unit = torch.log(past.change)[:, None, None]

        def epoch() -> float:
            *given, _, _, _ = module(past.y, *start)
            density = distribution(module.kind, tuple(given)).log_prob(truths) + unit
            loss = -(density * weight).sum()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            rate.step()
            return float(loss.item())

        return run.fit(module, epoch, epochs=self.epochs)

    def forecast(self, module: DeepAR, data: Several) -> np.ndarray:
        """Quantiles of 200 paths behind each history, [N, 6, 7]."""
        past = yearly.batch(data.histories)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            drawn = paths(module, past.y, past.lengths, data.horizon, 200)
        return np.moveaxis(np.quantile(drawn.numpy().astype(np.float64), yearly.LEVELS, axis=1), 0, -1)

    def metrics(self, module: DeepAR, data: Several) -> dict[str, float | str]:
        """Of the held-out years."""
        return yearly.figures(data, self.forecast(module, data))

    def picture(self, module: DeepAR, data: Several) -> Figure:
        """Six of the series."""
        return yearly.fan(f"{self.card.name}: 200 paths, {data.source}", data, self.forecast(module, data))

    def export(self, module: DeepAR, data: Several, folder: Path) -> list[Export]:
        """One file; a session is one series, what is drawn of its distribution is fed back."""
        return [
            export(
                module,
                {"y": yearly.example(data)},
                states=module.states(),
                outputs=list(OUTPUTS[self.kind]),
                time_axis=1,
                head=HEADS[self.kind],
                feedback={"y": "y"},
                path=folder / "model.onnx",
                description="Gives a distribution of a yearly series' next year from the years so far; a year a step.",
            )
        ]


recipe = DeepARRecipe()
