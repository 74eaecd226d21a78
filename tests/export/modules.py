"""Modules that the tests of the exporter share."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from statestream_export import State

Array = np.ndarray


class Layered(nn.Module):
    """A recurrent layer and a head; forward(x, h) or forward(x, h, c)."""

    def __init__(self, kind: Any, layers: int = 2, hidden: int = 6, batch_first: bool = True) -> None:
        super().__init__()
        self.layer = kind(3, hidden, layers, batch_first=batch_first, dropout=0.5 if layers > 1 else 0.0)
        self.head = nn.Linear(hidden, 2)

    def forward(self, x: Tensor, h: Tensor, c: Tensor | None = None) -> tuple[Tensor, ...]:
        if c is None:
            hidden, h = self.layer(x, h)
            return self.head(hidden), h
        hidden, (h, c) = self.layer(x, (h, c))
        return self.head(hidden), h, c


class Cell(nn.Module):
    """One step a run: forward(x, h, c), all [B, ...]."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 6)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, c = self.cell(x, (h, c))
        return h * 2, h, c


def states_of(kind: type[nn.RNNBase], layers: int = 2, hidden: int = 6) -> dict[str, State]:
    names = ("h", "c") if kind is nn.LSTM else ("h",)
    return {name: State(torch.zeros(layers, 1, hidden), batch_axis=1) for name in names}


def session(path: object) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
