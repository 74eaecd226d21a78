"""Inception v3, after Szegedy et al., 2015, with torchvision's parameter names; the auxiliary head only trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, max_pool2d

from statestream_export.recipes.architectures import HALF, Architecture, ArchitectureRecipe
from statestream_export.recipes.googlenet import BasicConv2d

Size = int | tuple[int, int]
LONG, TALL = (1, 7), (7, 1)
"""Convolutions along one axis only, in pairs."""


def same(inputs: int, outputs: int, size: Size = 1) -> BasicConv2d:
    """A convolution that keeps height and width."""
    height, width = (size, size) if isinstance(size, int) else size
    return BasicConv2d(inputs, outputs, (height, width), 1, (height // 2, width // 2))


def halving(inputs: int, outputs: int) -> BasicConv2d:
    """A 3×3 convolution that halves height and width."""
    return BasicConv2d(inputs, outputs, 3, 2)


class InceptionA(nn.Module):
    """1×1; 5×5; two 3×3; pooling."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = same(inputs, 64)
        self.branch5x5_1 = same(inputs, 48)
        self.branch5x5_2 = same(48, 64, 5)
        self.branch3x3dbl_1 = same(inputs, 64)
        self.branch3x3dbl_2 = same(64, 96, 3)
        self.branch3x3dbl_3 = same(96, 96, 3)
        self.branch_pool = same(inputs, pooled)

    def forward(self, x: Tensor) -> Tensor:
        """What the four say, stacked."""
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(avg_pool2d(x, 3, 1, 1))], 1)


class InceptionB(nn.Module):
    """Halves height and width: 3×3; two 3×3; pooling."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = halving(inputs, 384)
        self.branch3x3dbl_1 = same(inputs, 64)
        self.branch3x3dbl_2 = same(64, 96, 3)
        self.branch3x3dbl_3 = halving(96, 96)

    def forward(self, x: Tensor) -> Tensor:
        """What the three say, stacked."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, max_pool2d(x, 3, 2)], 1)


class InceptionC(nn.Module):
    """1×1; 7×7 and twice 7×7, both as pairs of long and tall convolutions; pooling."""

    def __init__(self, inputs: int, inner: int) -> None:
        super().__init__()
        self.branch1x1 = same(inputs, 192)
        self.branch7x7_1 = same(inputs, inner)
        self.branch7x7_2 = same(inner, inner, LONG)
        self.branch7x7_3 = same(inner, 192, TALL)
        self.branch7x7dbl_1 = same(inputs, inner)
        self.branch7x7dbl_2 = same(inner, inner, TALL)
        self.branch7x7dbl_3 = same(inner, inner, LONG)
        self.branch7x7dbl_4 = same(inner, inner, TALL)
        self.branch7x7dbl_5 = same(inner, 192, LONG)
        self.branch_pool = same(inputs, 192)

    def forward(self, x: Tensor) -> Tensor:
        """What the four say, stacked."""
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(avg_pool2d(x, 3, 1, 1))], 1)


class InceptionD(nn.Module):
    """Halves height and width: 3×3; 7×7 and 3×3; pooling."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1 = same(inputs, 192)
        self.branch3x3_2 = halving(192, 320)
        self.branch7x7x3_1 = same(inputs, 192)
        self.branch7x7x3_2 = same(192, 192, LONG)
        self.branch7x7x3_3 = same(192, 192, TALL)
        self.branch7x7x3_4 = halving(192, 192)

    def forward(self, x: Tensor) -> Tensor:
        """What the three say, stacked."""
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, max_pool2d(x, 3, 2)], 1)


class InceptionE(nn.Module):
    """1×1; 3×3 and twice 3×3, the last as a long and a tall convolution side by side; pooling."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch1x1 = same(inputs, 320)
        self.branch3x3_1 = same(inputs, 384)
        self.branch3x3_2a = same(384, 384, (1, 3))
        self.branch3x3_2b = same(384, 384, (3, 1))
        self.branch3x3dbl_1 = same(inputs, 448)
        self.branch3x3dbl_2 = same(448, 384, 3)
        self.branch3x3dbl_3a = same(384, 384, (1, 3))
        self.branch3x3dbl_3b = same(384, 384, (3, 1))
        self.branch_pool = same(inputs, 192)

    def forward(self, x: Tensor) -> Tensor:
        """What the six say, stacked."""
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        wide = [self.branch3x3_2a(three), self.branch3x3_2b(three)]
        wider = [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([self.branch1x1(x), *wide, *wider, self.branch_pool(avg_pool2d(x, 3, 1, 1))], 1)


class InceptionAux(nn.Module):
    """A second head in the middle of the trunk."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.conv0 = same(inputs, 128)
        self.conv1 = BasicConv2d(128, 768, 5)
        self.fc = nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores [B, classes]."""
        x = self.conv1(self.conv0(avg_pool2d(x, 5, 3)))
        scores: Tensor = self.fc(adaptive_avg_pool2d(x, 1).flatten(1))
        return scores


class InceptionV3(nn.Module):
    """x [B, 3, H, W], 75 pixels a side at least → scores [B, classes]; in train mode those of the auxiliary head, too.

    Args:
        classes: How many.
        aux_logits: Whether there is an auxiliary head.
    """

    def __init__(self, classes: int = 1000, *, aux_logits: bool = False) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = halving(3, 32)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, 3)
        self.Conv2d_2b_3x3 = same(32, 64, 3)
        self.maxpool1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = same(64, 80)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, 3)
        self.maxpool2 = nn.MaxPool2d(3, 2)
        self.Mixed_5b = InceptionA(192, 32)
        self.Mixed_5c = InceptionA(256, 64)
        self.Mixed_5d = InceptionA(288, 64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = InceptionC(768, 128)
        self.Mixed_6c = InceptionC(768, 160)
        self.Mixed_6d = InceptionC(768, 160)
        self.Mixed_6e = InceptionC(768, 192)
        self.AuxLogits = InceptionAux(768, classes) if aux_logits else None
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b = InceptionE(1280)
        self.Mixed_7c = InceptionE(2048)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Trunk and head."""
        x = self.maxpool1(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = self.maxpool2(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        middle = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(middle)))
        scores: Tensor = self.fc(self.dropout(self.avgpool(x).flatten(1)))
        if self.training and self.AuxLogits is not None:
            return scores, self.AuxLogits(middle)
        return scores


recipe = ArchitectureRecipe(
    Architecture(
        "inception-v3",
        "Inception v3: 11 inception blocks",
        parameters=23_834_568,
        size=299,
        mean=HALF,
        deviation=HALF,
        only_train=("AuxLogits.",),
    ),
    InceptionV3,
)
