"""Rows: an RNN that reads an image row by row, as one picture or as a session."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from statestream_export import Export, State, export
from statestream_export.datasets.images import Images, mnist
from statestream_export.pictures import scans
from statestream_export.recipe import Card, Target
from statestream_export.recipes.classifier import DIGITS
from statestream_export.training import Curve, Run

HIDDEN, BATCH, SIZE = 64, 8, 8
GOALS = {SIZE: 0.96, 28: 0.9312}
"""The accuracy to reach by the width of the images: on the digits, and on MNIST what the training notes reached."""


class RowReader(nn.Module):
    """row [B, T, W] float32, 0 to 255 → scores [B, T, 10], log-softmax, after every row; h (and c) [1, B, 64]."""

    def __init__(self, kind: type[nn.RNN | nn.LSTM | nn.GRU], width: int) -> None:
        super().__init__()
        self.layer = kind(width, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, len(DIGITS))

    def forward(self, row: Tensor, h: Tensor, c: Tensor | None = None) -> tuple[Tensor, ...]:
        """All rows; scaling to 0..1 happens inside."""
        if c is None:
            hidden, h = self.layer(row / 255.0, h)
            return nn.functional.log_softmax(self.head(hidden), dim=-1), h
        hidden, (h, c) = self.layer(row / 255.0, (h, c))
        return nn.functional.log_softmax(self.head(hidden), dim=-1), h, c


class WholeImage(nn.Module):
    """The same weights, one answer an image: image [B, H, W] float32 → scores [B, 10] after the last row."""

    def __init__(self, reader: RowReader) -> None:
        super().__init__()
        self.reader = reader

    def forward(self, image: Tensor) -> Tensor:
        """From zeros, as a session starts."""
        start = torch.zeros(1, image.shape[0], HIDDEN)
        states = (start, start) if isinstance(self.reader.layer, nn.LSTM) else (start,)
        scores: Tensor = self.reader(image, *states)[0]
        return scores[:, -1]


class Rows:
    """Adam .001, batches of 8, 10 epochs on MNIST, 40 on the digits; served whole and row by row."""

    name: ClassVar[str] = "rows"
    kind: ClassVar[type[nn.RNN | nn.LSTM | nn.GRU]] = nn.RNN

    def __init__(self) -> None:
        self.card = Card(
            self.name,
            task="read handwritten digits row by row",
            data="MNIST; else scikit-learn digits, 8×8",
            cell=f"{self.kind.__name__} over the rows, 64 units",
            kind="session",
            mode="sequence to class",
            target=Target("above_goal", ">=", 0),
        )

    def data(self, run: Run) -> Images:
        """The images, and where they are from."""
        return mnist(run.source, size=SIZE)

    def module(self, data: Images) -> RowReader:
        """Random weights from the run's seed."""
        return RowReader(self.kind, data.images.shape[-1])

    def train(self, module: RowReader, data: Images, run: Run) -> Curve:
        """Cross-entropy of what is said after the last row; the best weights on a tenth of what trains are kept."""
        whole = WholeImage(module)
        count = len(data.images) - max(1, len(data.images) // 10)
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)

        def epoch() -> float:
            total = 0.0
            for chosen in torch.split(torch.randperm(count), BATCH):
                loss = nn.functional.nll_loss(whole(data.images[chosen].float()), data.labels[chosen])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                total += float(loss.item()) * len(chosen)
            return total / count

        def score() -> float:
            return float(nn.functional.nll_loss(whole(data.images[count:].float()), data.labels[count:]))

        return run.fit(module, epoch, epochs=40 if len(data.images) < 10_000 else 10, score=score)

    def metrics(self, module: RowReader, data: Images) -> dict[str, float | int | str]:
        """The share of held-out images that are read right, whole and row by row, and how far those are apart."""
        whole = WholeImage(module)(data.test_images.float())
        states = [torch.zeros(1, len(whole), HIDDEN)] * len(self._states())
        said = whole
        for row in data.test_images.float().unbind(1):
            scores, *states = module(row[:, None], *states)
            said = scores[:, 0]
        right = (whole.argmax(-1) == data.test_labels).numpy()
        accuracy, goal = float(right.mean()), GOALS[data.images.shape[-1]]
        return {
            "test_accuracy": accuracy,
            "goal": goal,
            "above_goal": accuracy - goal,
            "test_accuracy_row_by_row": float((said.argmax(-1) == data.test_labels).float().mean()),
            "stream_difference": float((whole - said).abs().max()),
            "test_images": len(right),
            "data": data.source,
        }

    def picture(self, module: RowReader, data: Images) -> Figure:
        """Held-out images with what was read; wrong ones first, in red."""
        read = WholeImage(module)(data.test_images.float()).argmax(-1)
        title = f"{self.name}: held-out images, wrong ones first"
        return scans(title, data.test_images, read, data.test_labels, DIGITS)

    def export(self, module: RowReader, data: Images, folder: Path) -> list[Export]:
        """Two models of the same weights: `rows` for sessions, `rows-whole` for predict."""
        height, width = data.images.shape[1:]
        what = f"a handwritten digit of {height}×{width} pixels, 0 (white) to 255"
        return [
            export(
                module,
                {"row": data.images[:32].float()},
                states=self._states(),
                outputs=["scores"],
                time_axis=1,
                path=folder / "model.onnx",
                classes={"scores": DIGITS},
                description=f"Reads {what}, row by row: log-probabilities after every row.",
            ),
            export(
                WholeImage(module),
                {"image": data.images[:32].float()},
                outputs=["scores"],
                path=folder / "whole" / "model.onnx",
                classes={"scores": DIGITS},
                description=f"Reads {what}: log-probabilities.",
            ),
        ]

    def _states(self) -> dict[str, State]:
        names = ("h", "c") if self.kind is nn.LSTM else ("h",)
        return {name: State(torch.zeros(1, 1, HIDDEN), batch_axis=1) for name in names}


recipe = Rows()
