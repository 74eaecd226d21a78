"""Transfer: a ResNet-18 that knows some images learns others; first its head alone, then all of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from statestream_export import Export, export
from statestream_export.datasets.images import Images, digits
from statestream_export.pictures import bars
from statestream_export.recipe import Card, Target
from statestream_export.recipes.architectures import IMAGENET_DEVIATION, IMAGENET_MEAN, load_weights
from statestream_export.recipes.resnet18 import ResNet18
from statestream_export.training import Curve, Run

SIZE, BATCH = 32, 32
KNOWN = 5
"""The digits below are what the trunk knows; those from here on are new."""
TRUNK_RATE, HEAD_RATE = 3e-4, 3e-3


class NewDigits(nn.Module):
    """image [B, 32, 32] uint8, 0 (white) to 255 → scores [B, 5] of the digits 5 to 9, log-softmax."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.network = ResNet18(10 - KNOWN)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None] * 255)
        self.register_buffer("deviation", torch.tensor(IMAGENET_DEVIATION)[:, None, None] * 255)

    def forward(self, image: Tensor) -> Tensor:
        """Scaling, and grey as red, green and blue, happen inside."""
        return nn.functional.log_softmax(self.network(self._colours(image)), dim=-1)

    def features(self, image: Tensor) -> Tensor:
        """What the trunk says: [B, 512]."""
        return self.network.features(self._colours(image))

    def _colours(self, image: Tensor) -> Tensor:
        return (image.float().unsqueeze(1) - self.mean) / self.deviation


@dataclass(frozen=True)
class Task:
    """Images uint8 [N, 32, 32] and classes int64 [N] from 0, to learn from and held out."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def accuracy(self, module: nn.Module) -> float:
        """The share of the images held out that a module names right."""
        module.eval()
        with torch.no_grad():
            said = torch.cat([module(part).argmax(-1) for part in torch.split(self.test_images, 100)])
        return float((said == self.test_labels).float().mean())


@dataclass(frozen=True)
class Tasks:
    """What the trunk knows, what is new, and the checkpoint that the trunk comes from, if any."""

    known: Task
    new: Task
    weights: Path | None


class Transfer:
    """The trunk learns the digits 0 to 4 (or comes from --weights); a new head learns 5 to 9; then both go on."""

    card = Card(
        "transfer",
        task="learn the digits 5 to 9 with a trunk that knows others",
        data="scikit-learn digits, scaled up to 32×32; the trunk from 0 to 4, or --weights FILE",
        cell="ResNet-18, new head",
        kind="predict",
        mode="",
        target=Target("gain_of_fine_tuning", ">=", 0),
    )

    def __init__(self) -> None:
        self._frozen: dict[str, float] = {}
        self._tuned: dict[str, float] = {}

    def data(self, run: Run) -> Tasks:
        """The digits below and from five."""
        images = digits(SIZE)
        return Tasks(_task(images, 0, KNOWN), _task(images, KNOWN, 10), run.weights)

    def module(self, data: Tasks) -> NewDigits:
        """Random weights, or a checkpoint's trunk; the head is always new."""
        module = NewDigits()
        if data.weights is not None:
            load_weights(module.network, data.weights, skip=("fc.weight", "fc.bias"))
        return module

    def train(self, module: NewDigits, data: Tasks, run: Run) -> Curve:
        """Trunk, head, both; the weights of the last stage that a twelfth of what trains prefers are kept."""
        if data.weights is None:
            first = self._fit(module, data.known, run, epochs=4, rate=1e-3)
            if first.interrupted:
                self._frozen = self._tuned = {"accuracy": data.new.accuracy(module), "seconds": 0.0}
                return first
        module.network.fc.reset_parameters()
        started = time.perf_counter()
        frozen = self._train_head(module, data.new, run)
        self._frozen = {"accuracy": data.new.accuracy(module), "seconds": time.perf_counter() - started}
        self._tuned = dict(self._frozen)
        if frozen.interrupted:
            return frozen
        started = time.perf_counter()
        curve = self._fit(module, data.new, run, epochs=6, rate=TRUNK_RATE)
        self._tuned = {"accuracy": data.new.accuracy(module), "seconds": time.perf_counter() - started}
        return curve

    def metrics(self, module: NewDigits, data: Tasks) -> dict[str, float | int | str]:
        """Accuracy on the new digits held out, and seconds, of both stages; the seconds are this machine's."""
        return {
            "frozen_accuracy": self._frozen["accuracy"],
            "fine_tuned_accuracy": self._tuned["accuracy"],
            "gain_of_fine_tuning": self._tuned["accuracy"] - self._frozen["accuracy"],
            "frozen_seconds": self._frozen["seconds"],
            "fine_tuned_seconds": self._tuned["seconds"],
            "test_images": len(data.new.test_labels),
            "trunk": "scikit-learn digits 0 to 4" if data.weights is None else data.weights.name,
        }

    def picture(self, module: NewDigits, data: Tasks) -> Figure:
        """Both accuracies."""
        values = {"frozen trunk": self._frozen["accuracy"], "fine-tuned": self._tuned["accuracy"]}
        return bars("transfer: accuracy on new digits", values)

    def export(self, module: NewDigits, data: Tasks, folder: Path) -> list[Export]:
        """One file without memory."""
        return [
            export(
                module,
                {"image": data.new.images[:32]},
                outputs=["scores"],
                path=folder / "model.onnx",
                classes={"scores": [str(digit) for digit in range(KNOWN, 10)]},
                description="Names a handwritten digit from 5 to 9 of 32×32 pixels, 0 to 255: log-probabilities.",
            )
        ]

    def _train_head(self, module: NewDigits, task: Task, run: Run) -> Curve:
        """The trunk is frozen, its normalisation too, so it sees every image once; then only the head is trained."""
        module.eval()
        with torch.no_grad():
            features = torch.cat([module.features(part) for part in torch.split(task.images, 100)])
        head = module.network.fc
        optimizer = torch.optim.Adam(head.parameters(), lr=HEAD_RATE)

        def epoch() -> float:
            loss = nn.functional.cross_entropy(head(features), task.labels)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            return float(loss.item())

        return run.fit(head, epoch, epochs=300)

    def _fit(self, module: NewDigits, task: Task, run: Run, *, epochs: int, rate: float) -> Curve:
        """All of it; the head at ten times the rate of the trunk."""
        head = list(module.network.fc.parameters())
        trunk = [value for name, value in module.network.named_parameters() if not name.startswith("fc.")]
        optimizer = torch.optim.Adam([{"params": trunk, "lr": rate}, {"params": head, "lr": 10 * rate}])
        count = len(task.images) - len(task.images) // 12

        def epoch() -> float:
            total = 0.0
            for chosen in torch.split(torch.randperm(count), BATCH):
                loss = nn.functional.nll_loss(module(task.images[chosen]), task.labels[chosen])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                total += float(loss.item()) * len(chosen)
            return total / count

        def score() -> float:
            return float(nn.functional.nll_loss(module(task.images[count:]), task.labels[count:]))

        return run.fit(module, epoch, epochs=epochs, score=score)


def _task(images: Images, low: int, high: int) -> Task:
    """The classes from `low` to below `high`, numbered from 0."""
    train, test = ((labels >= low) & (labels < high) for labels in (images.labels, images.test_labels))
    return Task(
        images.images[train], images.labels[train] - low, images.test_images[test], images.test_labels[test] - low
    )


recipe = Transfer()
