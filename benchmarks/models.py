"""The models that are measured, exported by our own exporter."""

from __future__ import annotations

from pathlib import Path

import torch

from statestream_export import Export, State, export

PIXELS = 784
"""What the perceptron takes: a scan of 28 × 28."""


class Recurrent(torch.nn.Module):
    """LSTM → Linear."""

    def __init__(self, features: int, hidden: int, layers: int, outputs: int) -> None:
        super().__init__()
        self.cells = torch.nn.LSTM(features, hidden, layers, batch_first=True)
        self.head = torch.nn.Linear(hidden, outputs)

    def forward(
        self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        y, (h, c) = self.cells(x, (h, c))
        return self.head(y), h, c


class Convolutional(torch.nn.Module):
    """conv 10@5×5 → pool → conv 20@3×3 → 500 → 10, for images of 28 × 28."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, 10, 5),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(10, 20, 3),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(20 * 10 * 10, 500),
            torch.nn.ReLU(),
            torch.nn.Linear(500, 10),
            torch.nn.LogSoftmax(-1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return y


class Perceptron(torch.nn.Module):
    """784 → 256 → 10."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(PIXELS, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return y


def make(folder: Path) -> dict[str, Export]:
    """Writes lstm (8 → 2×64 → 1), lstm-wide (8 → 2×256 → 1), loop (2 → 16 → 2, fed back), convnet and mlp."""
    torch.manual_seed(0)
    made = dict[str, Export]()
    for name, hidden in (("lstm", 64), ("lstm-wide", 256)):
        zeros = torch.zeros(2, 1, hidden)
        states = {"h": State(zeros, batch_axis=1), "c": State(zeros, batch_axis=1)}
        path = folder / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        x = {"x": torch.zeros(2, 3, 8)}
        made[name] = export(Recurrent(8, hidden, 2, 1), x, states=states, path=path, time_axis=1)
    zeros = torch.zeros(1, 1, 16)
    states = {"h": State(zeros, batch_axis=1), "c": State(zeros, batch_axis=1)}
    path = folder / "loop" / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    x = {"x": torch.zeros(2, 3, 2)}
    made["loop"] = export(Recurrent(2, 16, 1, 2), x, states=states, path=path, time_axis=1, feedback={"y": "x"})
    path = folder / "convnet" / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    made["convnet"] = export(Convolutional(), {"x": torch.zeros(2, 1, 28, 28)}, path=path)
    path = folder / "mlp" / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    made["mlp"] = export(Perceptron(), {"x": torch.zeros(2, PIXELS)}, path=path)
    return made
