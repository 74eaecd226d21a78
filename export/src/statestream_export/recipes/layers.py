"""What the recipes rnn, lstm and gru share: torch's recurrent layers, in every layout, through the gate."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from statestream_export import Export, ExportError, State, export
from statestream_export.pictures import table
from statestream_export.recipe import Card, Target
from statestream_export.training import Curve, Run

Sizes = tuple[int, int, int]
"""Inputs, hidden units and layers."""


class Layer(nn.Module):
    """One recurrent layer of torch: x → y, state h, and c where it has one."""

    def __init__(self, kind: type[nn.RNN | nn.LSTM | nn.GRU], sizes: Sizes, *, batch_first: bool = True) -> None:
        super().__init__()
        inputs, hidden, layers = sizes
        self.layer = kind(inputs, hidden, layers, batch_first=batch_first)

    def forward(self, x: Tensor, h: Tensor, c: Tensor | None = None) -> tuple[Tensor, ...]:
        """All steps."""
        if c is None:
            y, h = self.layer(x, h)
            return y, h
        y, (h, c) = self.layer(x, (h, c))
        return y, h, c


class BothWays(nn.Module):
    """A bidirectional layer: x [B, T, inputs] → y [B, T, 2 × hidden], no states."""

    def __init__(self, kind: type[nn.RNN | nn.LSTM | nn.GRU], sizes: Sizes) -> None:
        super().__init__()
        inputs, hidden, layers = sizes
        self.layer = kind(inputs, hidden, layers, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        """All steps, both ways."""
        y: Tensor = self.layer(x)[0]
        return y


class LayerRecipe:
    """Random weights; every layout must pass the gate, and bidirectional sessions must be refused.

    The served model is the first of the sizes with batch_first.
    """

    def __init__(self, kind: type[nn.RNN | nn.LSTM | nn.GRU], sizes: Sequence[Sizes]) -> None:
        self._kind = kind
        self._sizes = tuple(sizes)
        name = kind.__name__
        shown = " and ".join(f"{inputs}→{hidden} ×{layers}" for inputs, hidden, layers in sizes)
        self.card = Card(
            name.lower(),
            task=f"torch's {name} layer in every layout",
            data="random, from the seed",
            cell=f"{name} {shown}",
            kind="session",
            mode="synchronous sequence to sequence",
            target=Target("largest_difference", "<=", 1e-5),
        )
        self._differences: dict[str, float] = {}

    def data(self, run: Run) -> list[Tensor]:
        """Random sequences [3, 7, inputs], one for every size."""
        return [torch.randn(3, 7, inputs) for inputs, _, _ in self._sizes]

    def module(self, data: list[Tensor]) -> Layer:
        """Random weights from the run's seed."""
        return Layer(self._kind, self._sizes[0])

    def train(self, module: Layer, data: list[Tensor], run: Run) -> Curve:
        """There is nothing to learn."""
        return Curve()

    def metrics(self, module: Layer, data: list[Tensor]) -> dict[str, float | str]:
        """The largest difference from torch of every layout, and why bidirectional sessions are refused."""
        found: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            for x, sizes in zip(data, self._sizes, strict=True):
                shape = "{}_{}_x{}".format(*sizes)
                first = Layer(self._kind, sizes)
                found[f"batch_first_{shape}"] = worst(self._export(first, x, sizes, path))
                second = Layer(self._kind, sizes, batch_first=False)
                found[f"time_first_{shape}"] = worst(self._export(second, x.transpose(0, 1), sizes, path, first=False))
                both = BothWays(self._kind, sizes)
                found[f"bidirectional_predict_{shape}"] = worst(export(both, {"x": x}, time_axis=1, path=path))
            reason = self._refusal(data[0], path)
        self._differences = found
        return {**found, "largest_difference": max(found.values()), "bidirectional_session": reason}

    def picture(self, module: Layer, data: list[Tensor]) -> Figure:
        """The differences."""
        values = torch.tensor([[value] for value in self._differences.values()]).numpy()
        return table(f"{self.card.name}: parity with torch", values, list(self._differences), ["largest difference"])

    def export(self, module: Layer, data: list[Tensor], folder: Path) -> list[Export]:
        """One file, batch first."""
        return [self._export(module, data[0], self._sizes[0], folder / "model.onnx")]

    def _export(self, module: Layer, x: Tensor, sizes: Sizes, path: Path, *, first: bool = True) -> Export:
        _, hidden, layers = sizes
        names = ("h", "c") if self._kind is nn.LSTM else ("h",)
        return export(
            module,
            {"x": x},
            states={name: State(torch.zeros(layers, 1, hidden), batch_axis=1) for name in names},
            batch_axis=0 if first else 1,
            time_axis=1 if first else 0,
            path=path,
            description=f"{self.card.cell} with random weights.",
        )

    def _refusal(self, x: Tensor, path: Path) -> str:
        _, hidden, layers = self._sizes[0]
        state = State(torch.zeros(2 * layers, 1, hidden), batch_axis=1)
        try:
            export(BothWays(self._kind, self._sizes[0]), {"x": x}, states={"h": state}, time_axis=1, path=path)
        except ExportError as error:
            return str(error)
        return ""


def worst(made: Export) -> float:
    """The largest difference that the gate saw."""
    return max(case.difference for case in made.gate.cases)
