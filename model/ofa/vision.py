"""The image trunk: the first three stages of a bottleneck ResNet v1.5, stride 16.

Dimensions: B batch, C channels, H and W rows and columns of pixels or features.
Source: He et al., arXiv 1512.03385; v1.5 puts the stride into the 3x3 convolution.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

EXPANSION = 4


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut; the output is four times as wide as the inner `planes`."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        outputs = planes * EXPANSION
        self.conv1 = _conv(inputs, planes, 1)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv(planes, planes, 3, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = _conv(planes, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                _conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map `[B, inputs, H, W]` to `[B, 4 planes, H / stride, W / stride]`."""
        y_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)), inplace=True)
        y_BCHW = F.relu(self.bn2(self.conv2(y_BCHW)), inplace=True)
        y_BCHW = self.bn3(self.conv3(y_BCHW))
        shortcut_BCHW = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        return F.relu(y_BCHW + shortcut_BCHW, inplace=True)


class ResNetTrunk(nn.Module):
    """Stem and three stages; 16 x `width` channels at one sixteenth of the resolution."""

    def __init__(self, blocks: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = self._stage(width, width, blocks[0], stride=1)
        self.layer2 = self._stage(width * EXPANSION, width * 2, blocks[1], stride=2)
        self.layer3 = self._stage(width * 2 * EXPANSION, width * 4, blocks[2], stride=2)

    @staticmethod
    def _stage(inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
        first = Bottleneck(inputs, planes, stride)
        rest = [Bottleneck(planes * EXPANSION, planes, 1) for _ in range(blocks - 1)]
        return nn.Sequential(first, *rest)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Map images `[B, 3, H, W]`, scaled to -1..1, to features `[B, 16 width, H/16, W/16]`."""
        x_BCHW = self.maxpool(F.relu(self.bn1(self.conv1(images_BCHW)), inplace=True))
        features_BCHW: Tensor = self.layer3(self.layer2(self.layer1(x_BCHW)))
        return features_BCHW
