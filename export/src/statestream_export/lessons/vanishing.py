"""Vanishing: how much of a gradient reaches a step long ago, and from where on a layer cannot learn what was there."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from statestream_export.lessons import Shown, finished
from statestream_export.training import Run

HIDDEN, BATCH, STEPS = 32, 64, 400
LENGTHS, SEEDS = (5, 10, 20, 40, 80, 160), 3
FAR = 100
"""The length over which gradients are measured before training."""
OPEN = 3.0
"""The bias of a forget gate that starts open: it keeps sigmoid(3) = .95 a step. As torch starts it, about .5."""

Layer = nn.RNN | nn.LSTM
WAYS: Mapping[str, tuple[type[Layer], float | None, str]] = {
    "RNN": (nn.RNN, None, "tab:red"),
    "LSTM": (nn.LSTM, None, "tab:blue"),
    "LSTM, forget gate open": (nn.LSTM, OPEN, "tab:green"),
}
"""By name: the layer, its forget gate's bias at the start where it is not torch's, and its colour."""


class First(nn.Module):
    """x [B, T, 1] float32 → score [B] of the first value's being positive, said after the last."""

    def __init__(self, kind: type[Layer], bias: float | None = None) -> None:
        super().__init__()
        self.layer = kind(1, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 1)
        if bias is not None:
            # Four gates of H rows, the forget gate's the second; torch adds the two biases.
            with torch.no_grad():
                _, _, first, second = self.layer.all_weights[0]
                first[HIDDEN : 2 * HIDDEN] = bias
                second[HIDDEN : 2 * HIDDEN] = 0

    def forward(self, x: Tensor) -> Tensor:
        """From zeros."""
        said: Tensor = self.head(self.layer(x)[0][:, -1])[:, 0]
        return said


def sequences(count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """First −1 or 1, then noise between them [count, length, 1]; and whether the first is 1, as 0 and 1 [count]."""
    x = torch.rand(count, length, 1, generator=generator) * 2 - 1
    labels = torch.randint(0, 2, (count,), generator=generator).float()
    x[:, 0, 0] = labels * 2 - 1
    return x, labels


def reach(module: First, length: int, generator: torch.Generator) -> list[float]:
    """The norm of the loss's gradient by the input k = 0, 1, … steps before the last, as a share of the last's."""
    x, labels = sequences(BATCH, length, generator)
    x.requires_grad_()
    loss = nn.functional.binary_cross_entropy_with_logits(module(x), labels)
    [gradient] = torch.autograd.grad(loss, [x])
    norms = gradient.double().norm(dim=(0, 2)).flip(0)
    return [float(norm / norms[0]) for norm in norms]


def show(run: Run) -> Shown:
    """Every way: gradients before training by distance; accuracy after equal training by length."""
    lengths = LENGTHS[:2] if run.quick else LENGTHS
    gradients, accuracies = dict[str, list[float]](), dict[str, dict[str, list[float]]]()
    for name, (kind, bias, _) in WAYS.items():
        found = []
        for seed in range(SEEDS):
            torch.manual_seed(run.seed + seed)
            found.append(reach(First(kind, bias), FAR, torch.Generator().manual_seed(run.seed + seed)))
        gradients[name] = [
            statistics.geometric_mean(max(share, 1e-45) for share in shares) for shares in zip(*found, strict=True)
        ]
        accuracies[name] = {}
        for length in lengths:
            accuracies[name][str(length)] = [
                _learnt(name, length, seed, run) for seed in range(run.seed, run.seed + SEEDS)
            ]
    figures = {
        "seeds": SEEDS,
        "share_of_gradient": {
            name: {str(k): shares[k] for k in (1, 10, 20, 50, 99)} for name, shares in gradients.items()
        },
        "accuracy": accuracies,
    }
    return Shown(figures, _picture(gradients, accuracies))


def _learnt(name: str, length: int, seed: int, run: Run) -> float:
    """The accuracy on new sequences after training at one length."""
    torch.manual_seed(seed)
    module, generator = First(*WAYS[name][:2]), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.003)

    def epoch() -> float:
        losses = []
        for _ in range(STEPS // 20):
            x, labels = sequences(BATCH, length, generator)
            loss = nn.functional.binary_cross_entropy_with_logits(module(x), labels)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.item()))
        return sum(losses) / len(losses)

    finished(run.fit(module, epoch, epochs=20))
    x, labels = sequences(1000, length, torch.Generator().manual_seed(1_000_000 + seed))
    with torch.no_grad():
        return float(((module(x) > 0) == (labels > 0.5)).float().mean())


def _picture(gradients: dict[str, list[float]], accuracies: dict[str, dict[str, list[float]]]) -> Figure:
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, shares in gradients.items():
        left.plot(shares, color=WAYS[name][2], label=name)
    left.set(title="The gradient before training", xlabel="steps before the last", yscale="log")
    left.set_ylabel("gradient by that step's input, the last's = 1")
    for name, by_length in accuracies.items():
        lengths, values = [int(length) for length in by_length], list(by_length.values())
        right.plot(
            lengths, [statistics.median(some) for some in values], "o-", color=WAYS[name][2], label=f"{name}, median"
        )
        right.fill_between(
            lengths, [min(some) for some in values], [max(some) for some in values], color=WAYS[name][2], alpha=0.15
        )
    right.axhline(0.5, color="grey", linestyle=":", label="guessing")
    right.set(title="Telling the first value after so many", xlabel="length", ylabel="accuracy", xscale="log")
    right.set_xticks([length for length in LENGTHS if str(length) in next(iter(accuracies.values()))])
    right.get_xaxis().set_major_formatter("{x:.0f}")
    right.minorticks_off()
    for axes in (left, right):
        axes.legend()
    return figure
