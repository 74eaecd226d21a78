"""Convnet: two convolutions that read handwritten digits of 28×28 pixels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from statestream_export.datasets.images import mnist
from statestream_export.recipe import Card, Target
from statestream_export.recipes.classifier import ClassifierRecipe


class Convnet(nn.Module):
    """Conv 10@5×5, pool, conv 20@3×3, 500, 10: image [B, 28, 28] uint8 → scores [B, 10], log-softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 10, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(10, 20, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(20 * 10 * 10, 500),
            nn.ReLU(),
            nn.Linear(500, 10),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Scaling to 0..1 happens inside."""
        return functional.log_softmax(self.layers(image.unsqueeze(1) / 255.0), dim=-1)


recipe = ClassifierRecipe(
    Card(
        "convnet",
        task="read handwritten digits",
        data="MNIST; else scikit-learn digits, scaled up",
        cell="Conv 10@5×5, 20@3×3, Linear 500",
        kind="predict",
        mode="",
        target=Target("test_accuracy", ">=", 0.985),
    ),
    mnist,
    Convnet,
    epochs=20,
    epochs_of_many=8,
    batch=128,
)
