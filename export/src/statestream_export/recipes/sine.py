"""Sine: an RNN that says the next point of a sine, and goes on by itself."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from statestream_export import Export, State, export
from statestream_export.pictures import lines
from statestream_export.recipe import Card, Target
from statestream_export.training import Curve, Run

POINTS, SPAN, HIDDEN, LAYERS = 60, 10.0, 10, 2
JUDGED, SHOWN = (0.0, 1.0, 2.0), 0.5
"""Where the windows start after which it goes on alone: to choose the weights, and to report."""
ITERATIONS = 50
"""The iterations that count as one epoch."""


class SineRnn(nn.Module):
    """The next point from this one: x [B, T, 1] float32 → y [B, T, 1], state h [2, B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, HIDDEN, LAYERS, batch_first=True)
        self.head = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """All steps."""
        hidden, h = self.rnn(x, h)
        return self.head(hidden), h


def zeros() -> Tensor:
    """The state at position 0 of one session."""
    return torch.zeros(LAYERS, 1, HIDDEN)


def window(start: float) -> Tensor:
    """60 points of the sine over 10 units from `start`, [1, 60, 1]."""
    return torch.sin(torch.linspace(start, start + SPAN, POINTS))[None, :, None]


class Sine:
    """Adam .005, clipped gradients, 6,000 iterations of one window each; the state is carried over."""

    card = Card(
        "sine",
        task="say the next point of a sine, then go on alone",
        data="sin over 10 units in 60 points, random start",
        cell="RNN 1→10 ×2",
        kind="session",
        mode="synchronous sequence to sequence",
        target=Target("loss", "<=", 5e-4),
    )

    def data(self, run: Run) -> list[Tensor]:
        """The windows by which the weights are judged: ten starts, evenly spaced."""
        return [window(0.3 * number) for number in range(10)]

    def module(self, data: list[Tensor]) -> SineRnn:
        """Random weights from the run's seed."""
        return SineRnn()

    def train(self, module: SineRnn, data: list[Tensor], run: Run) -> Curve:
        """Each window starts at random, with the state that the one before left."""
        optimizer = torch.optim.Adam(module.parameters(), lr=0.005)
        h = zeros()

        def epoch() -> float:
            nonlocal h
            total = 0.0
            for _ in range(ITERATIONS):
                points = window(float(torch.rand(1)) * 3)
                y, h = module(points[:, :-1], h.detach())
                loss = nn.functional.mse_loss(y, points[:, 1:])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                optimizer.step()
                total += float(loss.item())
            return total / ITERATIONS

        return run.fit(module, epoch, epochs=6000 // ITERATIONS, score=lambda: self._score(module, data))

    def metrics(self, module: SineRnn, data: list[Tensor]) -> dict[str, float]:
        """The mean loss of ten windows, and the mean error of 59 steps in closed loop."""
        said, truth = self._rollout(module, SHOWN)
        return {"loss": self._loss(module, data), "rollout_mean_error": float((said - truth).abs().mean())}

    def picture(self, module: SineRnn, data: list[Tensor]) -> Figure:
        """59 steps in closed loop after one window, against the sine."""
        said, truth = self._rollout(module, SHOWN)
        return lines(
            "sine: 59 steps in closed loop",
            {"sine": (truth.numpy(), "k-"), "closed loop": (said.numpy(), "--")},
            xlabel="step",
            ylabel="value",
        )

    def export(self, module: SineRnn, data: list[Tensor], folder: Path) -> list[Export]:
        """One file; y feeds back into x."""
        return [
            export(
                module,
                {"x": torch.cat(data)},
                states={"h": State(zeros(), batch_axis=1)},
                time_axis=1,
                path=folder / "model.onnx",
                feedback={"y": "x"},
                description="Says the next point of a sine that is sampled at 59 steps in 10 units.",
            )
        ]

    def _loss(self, module: SineRnn, data: list[Tensor]) -> float:
        h, losses = zeros(), []
        for points in [data[-1], *data]:
            y, h = module(points[:, :-1], h)
            losses.append(float(nn.functional.mse_loss(y, points[:, 1:])))
        # The first window brings the state to where training left it; it does not count.
        losses.pop(0)
        return sum(losses) / len(losses)

    def _score(self, module: SineRnn, data: list[Tensor]) -> float:
        """How far it drifts when it goes on alone, among weights whose loss is small enough.

        The loss of one step says little about that: two epochs of equal loss drift very differently.
        """
        loss = self._loss(module, data)
        if loss > 0.9 * self.card.target.bound:
            return 10 + loss
        rollouts = [self._rollout(module, start) for start in JUDGED]
        return sum(float((said - truth).abs().mean()) for said, truth in rollouts) / len(rollouts)

    def _rollout(self, module: SineRnn, start: float) -> tuple[Tensor, Tensor]:
        """What it says alone for 59 steps after it was shown one window, and the sine there."""
        step, said = SPAN / (POINTS - 1), []
        y, h = module(window(start), zeros())
        y = y[:, -1:]
        for _ in range(POINTS - 1):
            said.append(float(y))
            y, h = module(y, h)
        return torch.tensor(said), torch.sin(start + SPAN + step * torch.arange(1, POINTS))


recipe = Sine()
