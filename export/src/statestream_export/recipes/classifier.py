"""What the recipes for images share: cross-entropy, early stopping on a part of what trains, held-out accuracy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from statestream_export import Export, export
from statestream_export.datasets.files import Source
from statestream_export.datasets.images import Images
from statestream_export.pictures import scans
from statestream_export.recipe import Card
from statestream_export.training import Curve, Run, falling

DIGITS = tuple("0123456789")
SHIFT = 2


class ClassifierRecipe:
    """A network that maps images [B, H, W] uint8 to log-probabilities [B, 10].

    Args:
        card: What the list says of it.
        load: Where the images come from.
        network: Makes the network, random weights.
        epochs: At most, on some thousand images.
        epochs_of_many: The same where 10,000 images or more train.
        batch: Images a step; fewer where that would leave fewer than 20 steps an epoch.
        shift: By how many pixels at most a batch is moved.
        classes: What the ten classes are called.
    """

    def __init__(
        self,
        card: Card,
        load: Callable[[Source], Images],
        network: Callable[[], nn.Module],
        *,
        epochs: int,
        epochs_of_many: int,
        batch: int,
        shift: int = SHIFT,
        classes: tuple[str, ...] = DIGITS,
    ) -> None:
        self.card = card
        self._load = load
        self._network = network
        self._epochs = epochs
        self._epochs_of_many = epochs_of_many
        self._batch = batch
        self._shift = shift
        self._classes = classes

    def data(self, run: Run) -> Images:
        """The images, and where they are from."""
        return self._load(run.source)

    def module(self, data: Images) -> nn.Module:
        """Random weights from the run's seed."""
        return self._network()

    def train(self, module: nn.Module, data: Images, run: Run) -> Curve:
        """Adam, its rate falling, images shifted at random; the weights best on a tenth of what trains are kept."""
        count = len(data.images) - max(1, len(data.images) // 10)
        size = max(1, min(self._batch, count // 20))
        epochs = self._epochs if len(data.images) < 10_000 else self._epochs_of_many
        optimizer = torch.optim.Adam(module.parameters(), lr=2e-3, weight_decay=1e-4)
        rate = falling(optimizer, run.epochs(epochs) * -(-count // size))

        def epoch() -> float:
            total = 0.0
            for chosen in torch.split(torch.randperm(count), size):
                loss = nn.functional.nll_loss(module(shifted(data.images[chosen], self._shift)), data.labels[chosen])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                rate.step()
                total += float(loss.item()) * len(chosen)
            return total / count

        def score() -> float:
            said = scores(module, data.images[count:])
            return float(nn.functional.nll_loss(said, data.labels[count:]))

        return run.fit(module, epoch, epochs=epochs, score=score)

    def metrics(self, module: nn.Module, data: Images) -> dict[str, float | int | str]:
        """The share of held-out images that are named right, and on which data."""
        right = scores(module, data.test_images).argmax(-1) == data.test_labels
        return {
            "test_accuracy": float(right.float().mean()),
            "test_images": len(right),
            "wrong": int((~right).sum()),
            "data": data.source,
        }

    def picture(self, module: nn.Module, data: Images) -> Figure:
        """Held-out images with what was read; wrong ones first, in red."""
        read = scores(module, data.test_images).argmax(-1)
        title = f"{self.card.name}: held-out images, wrong ones first"
        return scans(title, data.test_images, read, data.test_labels, self._classes)

    def export(self, module: nn.Module, data: Images, folder: Path) -> list[Export]:
        """One file without memory."""
        height, width = data.images.shape[1:]
        return [
            export(
                module,
                {"image": data.images[:32]},
                outputs=["scores"],
                path=folder / "model.onnx",
                classes={"scores": self._classes},
                description=f"Names what is on a grey image of {height}×{width} pixels, 0 to 255: log-probabilities.",
            )
        ]


def shifted(images: Tensor, most: int = SHIFT) -> Tensor:
    """A batch of images [B, H, W], all moved by the same few pixels; they have margins that wide."""
    down, right = (torch.randint(-most, most + 1, (2,))).tolist()
    return images.roll((down, right), (1, 2))


def scores(module: nn.Module, images: Tensor) -> Tensor:
    """What the network says of many images, some hundreds at a time: [N, 10]."""
    return torch.cat([module(part) for part in torch.split(images, 500)])
