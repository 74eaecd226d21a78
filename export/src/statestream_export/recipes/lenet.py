"""LeNet-5: the classic network for handwritten digits, after LeCun et al., 1998."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from statestream_export.datasets.images import mnist
from statestream_export.recipe import Card, Target
from statestream_export.recipes.classifier import ClassifierRecipe

MARGIN = 2
"""28×28 becomes the 32×32 that the network was made for."""


class LeNet(nn.Module):
    """6@5×5, pool, 16@5×5, pool, 120, 84, 10: image [B, 28, 28] uint8 → scores [B, 10], log-softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 5),
            nn.Tanh(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.Tanh(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * 5 * 5, 120),
            nn.Tanh(),
            nn.Linear(120, 84),
            nn.Tanh(),
            nn.Linear(84, 10),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Scaling to 0..1 and the margin happen inside."""
        padded = functional.pad(image.unsqueeze(1) / 255.0, (MARGIN, MARGIN, MARGIN, MARGIN))
        return functional.log_softmax(self.layers(padded), dim=-1)


recipe = ClassifierRecipe(
    Card(
        "lenet",
        task="read handwritten digits",
        data="MNIST; else scikit-learn digits, scaled up",
        cell="LeNet-5: conv 6@5×5, 16@5×5, Linear 120, 84",
        kind="predict",
        mode="",
        target=Target("test_accuracy", ">=", 0.985),
    ),
    mnist,
    LeNet,
    epochs=40,
    epochs_of_many=10,
    batch=128,
)
