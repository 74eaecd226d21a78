"""AlexNet, after Krizhevsky, 2014, with torchvision's parameter names."""

from __future__ import annotations

from torch import Tensor, nn

from statestream_export.recipes.architectures import Architecture, ArchitectureRecipe


class AlexNet(nn.Module):
    """x [B, 3, H, W], 63 pixels a side at least → scores [B, classes]."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, 4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolutions, then three linear layers."""
        scores: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return scores


recipe = ArchitectureRecipe(
    Architecture("alexnet", "AlexNet: 5 convolutions, 3 linear layers", parameters=61_100_840), AlexNet
)
