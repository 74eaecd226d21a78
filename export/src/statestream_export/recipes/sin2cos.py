"""Sine to cosine: an RNN that tells the cosine from the sine, which takes memory."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from statestream_export import Export, State, export
from statestream_export.pictures import lines
from statestream_export.recipe import Card, Target
from statestream_export.training import Curve, Run

SEGMENT, STEPS, HIDDEN = 10, 300, 64


class SinToCos(nn.Module):
    """x [B, T, 1] float32, a sine → y [B, T, 1], its cosine; state h [1, B, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """All steps."""
        hidden, h = self.rnn(x, h)
        return self.head(hidden), h


def segment(number: int) -> tuple[Tensor, Tensor]:
    """Ten points of half a period, one segment after the other: sine and cosine [1, 10, 1]."""
    angle = math.pi * (number + torch.arange(SEGMENT) / SEGMENT)
    return torch.sin(angle)[None, :, None], torch.cos(angle)[None, :, None]


class Sin2Cos:
    """Adam .005, 300 steps of one segment each; the state is carried from segment to segment."""

    card = Card(
        "sin2cos",
        task="tell the cosine from the sine",
        data="ten points a half period, segment after segment",
        cell="RNN 1→64",
        kind="session",
        mode="synchronous sequence to sequence",
        target=Target("mse", "<=", 0.005),
    )

    def data(self, run: Run) -> list[tuple[Tensor, Tensor]]:
        """The twenty segments after the training's."""
        return [segment(number) for number in range(STEPS, STEPS + 20)]

    def module(self, data: list[tuple[Tensor, Tensor]]) -> SinToCos:
        """Random weights from the run's seed."""
        return SinToCos()

    def train(self, module: SinToCos, data: list[tuple[Tensor, Tensor]], run: Run) -> Curve:
        """One segment a step."""
        optimizer = torch.optim.Adam(module.parameters(), lr=0.005)
        h, number = torch.zeros(1, 1, HIDDEN), 0

        def epoch() -> float:
            nonlocal h, number
            x, wanted = segment(number)
            y, h = module(x, h.detach())
            loss = nn.functional.mse_loss(y, wanted)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            number += 1
            return float(loss.item())

        return run.fit(module, epoch, epochs=STEPS, score=lambda: self._mse(module, data[:4]))

    def metrics(self, module: SinToCos, data: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """The error over twenty segments, and how far streaming step by step is from whole segments."""
        whole, streamed = self._whole(module, data), self._streamed(module, data)
        return {"mse": self._mse(module, data), "stream_difference": float((whole - streamed).abs().max())}

    def picture(self, module: SinToCos, data: list[tuple[Tensor, Tensor]]) -> Figure:
        """The first eight segments, from a fresh state."""
        return lines(
            "sin2cos: eight segments from a fresh state",
            {
                "sine, given": (torch.cat([x[0, :, 0] for x, _ in data[:8]]).numpy(), "k:"),
                "cosine": (torch.cat([y[0, :, 0] for _, y in data[:8]]).numpy(), "k-"),
                "said": (self._whole(module, data[:8]).numpy(), "--"),
            },
            xlabel="step",
            ylabel="value",
        )

    def export(self, module: SinToCos, data: list[tuple[Tensor, Tensor]], folder: Path) -> list[Export]:
        """One file; a session is one wave."""
        return [
            export(
                module,
                {"x": torch.cat([x for x, _ in data])},
                states={"h": State(torch.zeros(1, 1, HIDDEN), batch_axis=1)},
                time_axis=1,
                path=folder / "model.onnx",
                columns={"x": ["sine"], "y": ["cosine"]},
                description="Tells the cosine from the sine, at ten points a half period.",
            )
        ]

    def _whole(self, module: SinToCos, data: list[tuple[Tensor, Tensor]]) -> Tensor:
        h, said = torch.zeros(1, 1, HIDDEN), []
        for x, _ in data:
            y, h = module(x, h)
            said.append(y[0, :, 0])
        return torch.cat(said)

    def _streamed(self, module: SinToCos, data: list[tuple[Tensor, Tensor]]) -> Tensor:
        h, said = torch.zeros(1, 1, HIDDEN), []
        for value in torch.cat([x for x, _ in data], dim=1).unbind(1):
            y, h = module(value[:, None], h)
            said.append(y.reshape(1))
        return torch.cat(said)

    def _mse(self, module: SinToCos, data: list[tuple[Tensor, Tensor]]) -> float:
        """From a fresh state; the first segment only warms it up."""
        said = self._whole(module, data)[SEGMENT:]
        return float(nn.functional.mse_loss(said, torch.cat([y[0, :, 0] for _, y in data])[SEGMENT:]))


recipe = Sin2Cos()
