"""DeepAR on counts: the daily sales of many shops, with weekday and promotion known beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, distributions, nn

from statestream_export import Export, accuracy, export
from statestream_export.recipe import Card, Target
from statestream_export.recipes.deepar import HEADS, OUTPUTS, DeepAR, distribution, paths
from statestream_export.training import Curve, Run, falling

SHOPS, DAYS, HELD_OUT = 60, 280, 28
COLUMNS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun", "promotion")
SPREAD: Final = 8.0
"""The total count of the distribution that sales are drawn of: their variance is mean + mean²/8."""
_BEGIN: Final = 14
_DRAWN: Final = 200


@dataclass(frozen=True, slots=True)
class Sales:
    """Daily sales.

    Attributes:
        sold: [shops, days, 1] float32, whole numbers.
        known: [shops, days, 8] float32 of 0 and 1: the weekday, and whether there was a promotion.
        mean: [shops, days, 1] float32, of what was sold, as only who drew it knows.
    """

    sold: Tensor
    known: Tensor
    mean: Tensor

    def truth(self) -> distributions.Distribution:
        """What the sales were drawn of."""
        return distribution("negative_binomial", (torch.full_like(self.mean, SPREAD), self.mean))


def sales() -> Sales:
    """Shops from 1 to 400 pieces a day that drift slowly, with a week of their own kind and promotions now and then."""
    draw = np.random.default_rng(7)
    size = np.exp(draw.uniform(np.log(1.5), np.log(400), (SHOPS, 1)))
    drift = np.exp(np.cumsum(draw.normal(0, 0.015, (SHOPS, DAYS)), 1))
    week = np.array([0.8, 0.8, 0.9, 1.0, 1.3, 1.6, 0.4])[np.arange(DAYS) % 7]
    promotion = draw.random((SHOPS, DAYS)) < 0.12
    mean = size * drift * week * np.where(promotion, 1.8, 1.0)
    sold = draw.negative_binomial(SPREAD, SPREAD / (SPREAD + mean))
    weekday = np.broadcast_to(np.eye(7)[np.arange(DAYS) % 7], (SHOPS, DAYS, 7))
    known = np.concatenate([weekday, promotion[..., None]], -1)
    return Sales(*(torch.tensor(each, dtype=torch.float32) for each in (sold[..., None], known, mean[..., None])))


class DeepARSales:
    """Trains on all days but the last 28 of each shop; is judged on those, against what they were drawn of."""

    card = Card(
        "deepar-sales",
        task="forecast the sales of many shops, a distribution of tomorrow's count at a time",
        data="60 shops, 280 days, drawn in the recipe; the last 28 days held out",
        cell="LSTM 15→32, negative binomial, covariates, level as state",
        kind="session",
        mode="synchronous sequence to sequence",
        target=Target("loss_above_truth", "<=", 0.06),
    )

    def data(self, run: Run) -> Sales:
        """All days; `metrics` alone looks at the last of them."""
        return sales()

    def module(self, data: Sales) -> DeepAR:
        """One for all shops."""
        return DeepAR("negative_binomial", known=len(COLUMNS))

    def train(self, module: DeepAR, data: Sales, run: Run) -> Curve:
        """The likelihood of each day, given those before and its own weekday and promotion."""
        sold, known = data.sold[:, :-HELD_OUT], data.known[:, :-HELD_OUT]
        start = module.start(len(sold))
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        rate = falling(optimizer, run.epochs(120))

        def epoch() -> float:
            *given, _, _, _ = module(sold[:, :-1], known[:, 1:], *start)
            density = distribution(module.kind, tuple(given)).log_prob(sold[:, 1:])
            loss = -density[:, _BEGIN:].mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            rate.step()
            return float(loss.item())

        return run.fit(module, epoch, epochs=120)

    def metrics(self, module: DeepAR, data: Sales) -> dict[str, float]:
        """Of the held-out days: the loss a day, told the days before, and what paths of 28 days are worth."""
        with torch.no_grad():
            *given, _, _, _ = module(data.sold[:, :-1], data.known[:, 1:], *module.start(SHOPS))
            said = distribution(module.kind, tuple(given)).log_prob(data.sold[:, 1:])
        loss = -float(said[:, -HELD_OUT:].mean())
        least = -float(data.truth().log_prob(data.sold)[:, -HELD_OUT:].mean())
        drawn = self.drawn(module, data)
        came = data.sold[:, -HELD_OUT:, 0].numpy().astype(np.float64)
        bands = np.moveaxis(np.quantile(drawn, [0.025, 0.1, 0.5, 0.9, 0.975], axis=1), 0, -1)
        week = data.sold[:, -HELD_OUT - 7 : -HELD_OUT, 0].numpy().astype(np.float64)
        return {
            "loss": loss,
            "loss_of_truth": least,
            "loss_above_truth": loss - least,
            "weighted_quantile_loss_of_the_median": float(accuracy.quantile_loss(bands[..., 2:3], came, [0.5])[0]),
            "weighted_error_of_last_week": float(
                accuracy.quantile_loss(np.tile(week, HELD_OUT // 7)[..., None], came, [0.5])[0]
            ),
            "coverage_80": accuracy.coverage(bands[..., 1], bands[..., 3], came),
            "coverage_95": accuracy.coverage(bands[..., 0], bands[..., 4], came),
        }

    def drawn(self, module: DeepAR, data: Sales) -> np.ndarray:
        """200 paths through the held-out days of each shop, [shops, 200, 28]."""
        past = data.sold[:, :-HELD_OUT]
        known = data.known[:, 1 : 1 - HELD_OUT], data.known[:, -HELD_OUT:]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            lengths = torch.full((len(past),), past.shape[1])
            return paths(module, past, lengths, HELD_OUT, _DRAWN, known).numpy().astype(np.float64)

    def picture(self, module: DeepAR, data: Sales) -> Figure:
        """Four shops, from small to large: eight weeks, and the fan over the held-out four."""
        drawn, sizes = self.drawn(module, data), data.sold[:, :-HELD_OUT].mean((1, 2))
        figure = Figure(figsize=(11, 6), layout="constrained")
        figure.suptitle("deepar-sales: 200 paths through the held-out days")
        places = torch.argsort(sizes)[[2, SHOPS // 3, 2 * SHOPS // 3, SHOPS - 3]].tolist()
        for axes, at in zip(figure.subplots(2, 2).flat, places, strict=True):
            days, ahead = np.arange(DAYS - 2 * HELD_OUT, DAYS), np.arange(DAYS - HELD_OUT, DAYS)
            axes.plot(days, data.sold[at, -2 * HELD_OUT :, 0], "k.-", linewidth=0.6, label="sold")
            for low, high, percent in ((0.025, 0.975, 95), (0.1, 0.9, 80), (0.25, 0.75, 50)):
                bounds = np.quantile(drawn[at], [low, high], axis=0)
                axes.fill_between(ahead, *bounds, color="tab:blue", alpha=0.2, linewidth=0, label=f"{percent} %")
            axes.set(title=f"{sizes[at]:.0f} a day", ylim=(0, None))
        figure.axes[0].legend(loc="upper left", fontsize="x-small")
        return figure

    def export(self, module: DeepAR, data: Sales, folder: Path) -> list[Export]:
        """One file; a session is one shop, what is drawn is fed back, weekday and promotion are known beforehand."""
        return [
            export(
                module,
                {"y": data.sold[:, :60], "known": data.known[:, 1:61]},
                states=module.states(),
                outputs=list(OUTPUTS[module.kind]),
                time_axis=1,
                head=HEADS[module.kind],
                feedback={"y": "y"},
                ahead=["known"],
                columns={"y": ["sold"], "known": COLUMNS},
                path=folder / "model.onnx",
                description="Gives a distribution of tomorrow's sales from today's and what is known of tomorrow.",
            )
        ]


recipe = DeepARSales()
