"""Rows: an RNN that reads an image row by row, as one picture or as a session."""

from __future__ import annotations

import copy
import math
import statistics
from dataclasses import dataclass, field
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
from statestream_export.training import Curve, Run, falling

HIDDEN, SIZE = 64, 8
NOTES = 0.9312
"""The accuracy on MNIST of which the training notes tell: Adam .001, batches of 8, 10 epochs."""


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


@dataclass(frozen=True, slots=True)
class Way:
    """A way to train.

    Attributes:
        title: Above its curve.
        rate: Of Adam.
        batch: Images a step.
        epochs: How many.
        clip: The largest norm of a step's gradient; infinite where it is only measured.
        falls: Whether the rate falls to 0 along half a cosine.
    """

    title: str
    rate: float
    batch: int
    epochs: int
    clip: float = math.inf
    falls: bool = False


@dataclass(slots=True)
class Trained:
    """What one way gave.

    Attributes:
        way: The way.
        curve: The losses of every epoch, of what trains and of the tenth that is held back.
        accuracies: Of every epoch, on that tenth.
        norms: Of every step's gradient, before clipping.
        each: Steps an epoch.
    """

    way: Way
    curve: Curve = field(default_factory=Curve)
    accuracies: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    each: int = 1


class Readers(nn.Module):
    """The reader that is exported, and, with the same weights at the start, the one that is trained as in the notes."""

    def __init__(self, reader: RowReader, plain: RowReader | None) -> None:
        super().__init__()
        self.reader = reader
        self.plain = plain
        self.trained: list[Trained] = []


class Rows:
    """Gradients clipped and a falling rate; beside it the notes' own setting. Served whole and row by row."""

    name: ClassVar[str] = "rows"
    kind: ClassVar[type[nn.RNN | nn.LSTM | nn.GRU]] = nn.RNN
    goal: ClassVar[float] = 0.97
    rate: ClassVar[float] = 2e-3
    batch: ClassVar[int] = 64
    epochs: ClassVar[int] = 40

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

    def module(self, data: Images) -> Readers:
        """Random weights from the run's seed."""
        reader = RowReader(self.kind, data.images.shape[-1])
        return Readers(reader, copy.deepcopy(reader) if self.kind is nn.RNN else None)

    def train(self, module: Readers, data: Images, run: Run) -> Curve:
        """Cross-entropy of what is said after the last row; the best weights on a tenth of what trains are kept."""
        many = len(data.images) >= 10_000
        if module.plain is not None:
            way = Way("as in the notes: Adam .001, batches of 8", 1e-3, 8, 10 if many else 40)
            module.trained.append(fitted(module.plain, data, run, way))
            if module.trained[-1].curve.interrupted:
                return module.trained[-1].curve
        batch, epochs = (self.batch, self.epochs) if many else (8, 40)
        rate = self.rate if many else 3e-3
        title = f"norm at most 1, rate falls from {rate:g}, batches of {batch}"
        way = Way(title, rate, batch, epochs, clip=1.0, falls=True)
        module.trained.append(fitted(module.reader, data, run, way))
        return module.trained[-1].curve

    def metrics(self, module: Readers, data: Images) -> dict[str, float | int | str]:
        """The share of held-out images that are read right, whole and row by row, and how far those are apart."""
        whole = WholeImage(module.reader)(data.test_images.float())
        states = [torch.zeros(1, len(whole), HIDDEN)] * len(self._states())
        said = whole
        for row in data.test_images.float().unbind(1):
            scores, *states = module.reader(row[:, None], *states)
            said = scores[:, 0]
        accuracy, goal = _right(whole, data.test_labels), 0.96 if data.images.shape[-1] == SIZE else self.goal
        figures: dict[str, float | int | str] = {"test_accuracy": accuracy, "goal": goal, "above_goal": accuracy - goal}
        if module.plain is not None:
            plain = _right(WholeImage(module.plain)(data.test_images.float()), data.test_labels)
            figures["test_accuracy_as_in_the_notes"] = plain
            for done, how in zip(module.trained, ("_as_in_the_notes", ""), strict=False):
                figures[f"largest_gradient_norm{how}"] = max(done.norms, default=0.0)
                figures[f"median_gradient_norm{how}"] = statistics.median(done.norms or [0.0])
        return figures | {
            "test_accuracy_row_by_row": _right(said, data.test_labels),
            "stream_difference": float((whole - said).abs().max()),
            "test_images": len(whole),
            "data": data.source,
        }

    def picture(self, module: Readers, data: Images) -> Figure:
        """The two trainings side by side; without a second one, held-out images with what was read."""
        if len(module.trained) > 1:
            return _curves(self.name, module.trained, data.source)
        read = WholeImage(module.reader)(data.test_images.float()).argmax(-1)
        title = f"{self.name}: held-out images, wrong ones first"
        return scans(title, data.test_images, read, data.test_labels, DIGITS)

    def export(self, module: Readers, data: Images, folder: Path) -> list[Export]:
        """Two models of the same weights: `rows` for sessions, `rows-whole` for predict."""
        height, width = data.images.shape[1:]
        what = f"a handwritten digit of {height}×{width} pixels, 0 (white) to 255"
        return [
            export(
                module.reader,
                {"row": data.images[:32].float()},
                states=self._states(),
                outputs=["scores"],
                time_axis=1,
                path=folder / "model.onnx",
                classes={"scores": DIGITS},
                description=f"Reads {what}, row by row: log-probabilities after every row.",
            ),
            export(
                WholeImage(module.reader),
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


def _right(scores: Tensor, labels: Tensor) -> float:
    return float((scores.argmax(-1) == labels).numpy().mean())


def fitted(reader: RowReader, data: Images, run: Run, way: Way) -> Trained:
    """Trains a reader one way on nine tenths of what trains; it keeps the weights with the least loss on the rest."""
    whole, done = WholeImage(reader), Trained(way)
    count = len(data.images) - max(1, len(data.images) // 10)
    optimizer = torch.optim.Adam(reader.parameters(), lr=way.rate)
    done.each = math.ceil(count / way.batch)
    rate = falling(optimizer, run.epochs(way.epochs) * done.each) if way.falls else None

    def epoch() -> float:
        total = 0.0
        for chosen in torch.split(torch.randperm(count), way.batch):
            loss = nn.functional.nll_loss(whole(data.images[chosen].float()), data.labels[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            done.norms.append(float(nn.utils.clip_grad_norm_(reader.parameters(), way.clip)))
            optimizer.step()
            if rate is not None:
                rate.step()
            total += float(loss.item()) * len(chosen)
        return total / count

    def score() -> float:
        scores, labels = whole(data.images[count:].float()), data.labels[count:]
        done.accuracies.append(_right(scores, labels))
        return float(nn.functional.nll_loss(scores, labels))

    done.curve = run.fit(reader, epoch, epochs=way.epochs, score=score)
    return done


def _curves(name: str, trained: list[Trained], source: str) -> Figure:
    """One column for every way, over its steps: losses, accuracy, and the norms of the gradients."""
    figure = Figure(figsize=(10, 8), layout="constrained")
    figure.suptitle(f"{name}, {source}: the same weights at the start")
    grid = figure.subplots(3, len(trained), sharex="col", sharey="row", squeeze=False)
    for (losses, accuracy, norms), done in zip(grid.T, trained, strict=True):
        epochs, each = len(done.curve.losses), done.each
        ends = [each * (epoch + 1) for epoch in range(epochs)]
        losses.plot(ends, done.curve.losses, label="loss of what trains")
        losses.plot(ends, done.curve.scores, label="loss of a tenth held back")
        losses.set(title=done.way.title, yscale="log")
        accuracy.plot(ends, done.accuracies[:epochs], color="tab:orange", label="accuracy on the tenth held back")
        for axes in (losses, accuracy):
            axes.axvline(each * (done.curve.best + 1), color="grey", linestyle=":", label="kept")
        many = max(1, len(done.norms) // 400)
        some = [done.norms[at : at + many] for at in range(0, len(done.norms), many)]
        steps = [many * at for at in range(len(some))]
        norms.plot(steps, [max(block) for block in some], linewidth=0.8, label=f"largest gradient norm of {many} steps")
        norms.plot(steps, [statistics.median(block) for block in some], color="black", label="median")
        if math.isfinite(done.way.clip):
            norms.axhline(done.way.clip, color="red", label="longer ones are cut to this")
        norms.set(xlabel="step", yscale="log")
        for axes in (losses, accuracy, norms):
            axes.legend(loc="best")
    return figure


recipe = Rows()
