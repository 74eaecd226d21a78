"""Digits: a small convolutional network that reads handwritten digits of 8×8 pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from statestream_export import Export, export
from statestream_export.pictures import scans
from statestream_export.recipe import Card, Target
from statestream_export.training import Curve, Run

CLASSES = [str(digit) for digit in range(10)]
BATCH = 64


class Convnet(nn.Module):
    """Digits from pixels: image [B, 8, 8] float32, 0 to 16 → scores [B, 10], logarithms of probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(64, 10),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Scaling to 0..1 happens inside."""
        return functional.log_softmax(self.layers(image.unsqueeze(1) / 16), dim=-1)


@dataclass(frozen=True)
class Digits:
    """Scans float32 [N, 8, 8] and their digits int64 [N], to learn from and held out."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits(seed: int = 0) -> Digits:
    """scikit-learn's 1,797 scans; a quarter of each digit is held out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans = load_digits()
    images, labels = scans.images.astype(np.float32), scans.target.astype(np.int64)
    parts = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=seed)
    first, second, third, fourth = (torch.from_numpy(part) for part in parts)
    return Digits(first, third, second, fourth)


class DigitsCnn:
    """Cross-entropy, Adam, 30 epochs."""

    card = Card(
        "digits-cnn",
        task="read handwritten digits",
        data="scikit-learn digits, 1,797 scans of 8×8; a quarter held out",
        cell="Conv 16, 32",
        kind="predict",
        mode="",
        target=Target("test_accuracy", ">=", 0.97),
    )

    def data(self, run: Run) -> Digits:
        """The split is the same for every seed, so that figures can be compared."""
        return digits()

    def module(self, data: Digits) -> Convnet:
        """Random weights from the run's seed."""
        return Convnet()

    def train(self, module: Convnet, data: Digits, run: Run) -> Curve:
        """Mini-batches of 64 in random order."""
        optimizer = torch.optim.Adam(module.parameters(), lr=2e-3, weight_decay=1e-4)

        def epoch() -> float:
            total = 0.0
            for chosen in torch.split(torch.randperm(len(data.images)), BATCH):
                loss = functional.nll_loss(module(data.images[chosen]), data.labels[chosen])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                total += loss.item() * len(chosen)
            return total / len(data.images)

        return run.fit(module, epoch, epochs=30)

    def metrics(self, module: Convnet, data: Digits) -> dict[str, float | int]:
        """The share of held-out digits that are read right."""
        right = module(data.test_images).argmax(-1) == data.test_labels
        return {"test_accuracy": float(right.float().mean()), "test_images": len(right), "wrong": int((~right).sum())}

    def picture(self, module: Convnet, data: Digits) -> Figure:
        """Held-out scans with what was read; wrong ones first, in red."""
        read = module(data.test_images).argmax(-1)
        return scans("digits-cnn: held-out scans, wrong ones first", data.test_images, read, data.test_labels, CLASSES)

    def export(self, module: Convnet, data: Digits, folder: Path) -> list[Export]:
        """One file without memory."""
        return [
            export(
                module,
                {"image": data.images[:32]},
                outputs=["scores"],
                path=folder / "model.onnx",
                classes={"scores": CLASSES},
                description="Reads a handwritten digit: 8×8 pixels from 0 (white) to 16 (black) to log-probabilities.",
            )
        ]


recipe = DigitsCnn()
