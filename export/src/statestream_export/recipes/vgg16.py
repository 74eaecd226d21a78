"""VGG-16, after Simonyan and Zisserman, 2014, with torchvision's parameter names."""

from __future__ import annotations

from torch import Tensor, nn

from statestream_export.recipes.architectures import Architecture, ArchitectureRecipe

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""The channels of the convolutions between two poolings."""


class Vgg16(nn.Module):
    """x [B, 3, H, W], 32 pixels a side at least → scores [B, classes]."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers, inputs = list[nn.Module](), 3
        for stage in STAGES:
            for outputs in stage:
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolutions, then three linear layers."""
        scores: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return scores


recipe = ArchitectureRecipe(
    Architecture("vgg16", "VGG-16: 13 convolutions, 3 linear layers", parameters=138_357_544), Vgg16
)
