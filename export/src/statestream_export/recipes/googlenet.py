"""GoogLeNet, after Szegedy et al., 2014, with torchvision's parameter names; the auxiliary heads only train."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from statestream_export.recipes.architectures import HALF, Architecture, ArchitectureRecipe

Size = int | tuple[int, int]


class BasicConv2d(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: Size, stride: int = 1, padding: Size = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """One after the other."""
        return nn.functional.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    """Four ways side by side: 1×1; 1×1 and 3×3; 1×1 and 3×3 again; pooling and 1×1."""

    def __init__(self, inputs: int, one: int, second: tuple[int, int], third: tuple[int, int], pooled: int) -> None:
        super().__init__()
        self.branch1 = BasicConv2d(inputs, one, 1)
        self.branch2 = nn.Sequential(BasicConv2d(inputs, second[0], 1), BasicConv2d(*second, 3, padding=1))
        # The paper has 5×5 in this way; the published weights have 3×3.
        self.branch3 = nn.Sequential(BasicConv2d(inputs, third[0], 1), BasicConv2d(*third, 3, padding=1))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, padding=1, ceil_mode=True), BasicConv2d(inputs, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        """What the four say, stacked."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class InceptionAux(nn.Module):
    """A second head in the middle of the trunk."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.conv = BasicConv2d(inputs, 128, 1)
        self.fc1 = nn.Linear(2048, 1024)
        self.fc2 = nn.Linear(1024, classes)
        self.dropout = nn.Dropout(0.7)

    def forward(self, x: Tensor) -> Tensor:
        """Scores [B, classes]."""
        x = self.conv(nn.functional.adaptive_avg_pool2d(x, 4)).flatten(1)
        scores: Tensor = self.fc2(self.dropout(nn.functional.relu(self.fc1(x))))
        return scores


class GoogLeNet(nn.Module):
    """x [B, 3, H, W] → scores [B, classes]; in train mode those of the two auxiliary heads, too.

    Args:
        classes: How many.
        aux_logits: Whether there are auxiliary heads.
    """

    def __init__(self, classes: int = 1000, *, aux_logits: bool = False) -> None:
        super().__init__()
        self.conv1 = BasicConv2d(3, 64, 7, 2, 3)
        self.maxpool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = BasicConv2d(64, 64, 1)
        self.conv3 = BasicConv2d(64, 192, 3, padding=1)
        self.maxpool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception3a = Inception(192, 64, (96, 128), (16, 32), 32)
        self.inception3b = Inception(256, 128, (128, 192), (32, 96), 64)
        self.maxpool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception4a = Inception(480, 192, (96, 208), (16, 48), 64)
        self.inception4b = Inception(512, 160, (112, 224), (24, 64), 64)
        self.inception4c = Inception(512, 128, (128, 256), (24, 64), 64)
        self.inception4d = Inception(512, 112, (144, 288), (32, 64), 64)
        self.inception4e = Inception(528, 256, (160, 320), (32, 128), 128)
        self.maxpool4 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.inception5a = Inception(832, 256, (160, 320), (32, 128), 128)
        self.inception5b = Inception(832, 384, (192, 384), (48, 128), 128)
        self.aux1 = InceptionAux(512, classes) if aux_logits else None
        self.aux2 = InceptionAux(528, classes) if aux_logits else None
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Trunk and head."""
        x = self.maxpool2(self.conv3(self.conv2(self.maxpool1(self.conv1(x)))))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        middle = self.inception4a(x)
        late = self.inception4d(self.inception4c(self.inception4b(middle)))
        x = self.inception5b(self.inception5a(self.maxpool4(self.inception4e(late))))
        scores: Tensor = self.fc(self.dropout(self.avgpool(x).flatten(1)))
        if self.training and self.aux1 is not None and self.aux2 is not None:
            return scores, self.aux1(middle), self.aux2(late)
        return scores


recipe = ArchitectureRecipe(
    Architecture(
        "googlenet",
        "GoogLeNet: 9 inception blocks",
        parameters=6_624_904,
        mean=HALF,
        deviation=HALF,
        only_train=("aux1.", "aux2."),
    ),
    GoogLeNet,
)
