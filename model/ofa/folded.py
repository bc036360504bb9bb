"""The image trunk of a frozen base: BatchNorm folded into the convolution before it.

In eval mode BatchNorm multiplies and shifts channels by constants, and so does a convolution whose
weights were multiplied and whose bias was shifted. The folded weights are a second copy beside the
module's own, which stay what checkpoints and fingerprints see.

Dimensions: B batch, C channels, H and W rows and columns of pixels or features, O and I channels
out and in, K and L rows and columns of a kernel.
Source: Jacob et al., arXiv 1712.05877, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.ofa.vision import Bottleneck, ResNetTrunk


@dataclass(frozen=True)
class FoldedConv:
    """A convolution with its BatchNorm."""

    weight_OIKL: Tensor
    bias_O: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """Map `[B, I, H, W]` to `[B, O, H / stride, W / stride]`."""
        return F.conv2d(x_BCHW, self.weight_OIKL, self.bias_O, self.stride, self.padding)


@dataclass(frozen=True)
class FoldedBottleneck:
    """The convolutions of one block."""

    conv1: FoldedConv
    conv2: FoldedConv
    conv3: FoldedConv
    downsample: FoldedConv | None

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """Map what `Bottleneck` maps."""
        shortcut_BCHW = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        y_BCHW = self.conv2(self.conv1(x_BCHW).relu_()).relu_()
        return self.conv3(y_BCHW).add_(shortcut_BCHW).relu_()


class FoldedTrunk:
    """Computes what a `ResNetTrunk` in eval mode computes. It records nothing for gradients."""

    def __init__(self, trunk: ResNetTrunk, dtype: torch.dtype, *, channels_last: bool) -> None:
        """Folds a trunk as its weights are now.

        Args:
            trunk: the trunk, left as it is.
            dtype: that the folded weights are in, and that is computed in.
            channels_last: whether weights and features have their channels adjacent.
        """
        self._dtype = dtype
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._stem = self._fold(trunk.conv1, trunk.bn1)
        self._maxpool = trunk.maxpool
        stages = (trunk.layer1, trunk.layer2, trunk.layer3)
        self._blocks = [
            self._fold_block(block)
            for stage in stages
            for block in cast(Iterable[Bottleneck], stage)
        ]

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Map images `[B, 3, H, W]`, scaled to -1..1, to features `[B, 16 width, H/16, W/16]`."""
        with torch.autocast(images_BCHW.device.type, enabled=False):
            x_BCHW = images_BCHW.to(self._dtype, memory_format=self._layout)
            x_BCHW = self._maxpool(self._stem(x_BCHW).relu_())
            for block in self._blocks:
                x_BCHW = block(x_BCHW)
        return x_BCHW

    def _fold_block(self, block: Bottleneck) -> FoldedBottleneck:
        downsample = block.downsample
        return FoldedBottleneck(
            conv1=self._fold(block.conv1, block.bn1),
            conv2=self._fold(block.conv2, block.bn2),
            conv3=self._fold(block.conv3, block.bn3),
            downsample=None if downsample is None else self._fold(downsample[0], downsample[1]),
        )

    def _fold(self, convolution: nn.Module, norm: nn.Module) -> FoldedConv:
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        # float64, so that folding adds no rounding of its own to that of the weights.
        scale_O = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        weight_OIKL = convolution.weight.double() * scale_O[:, None, None, None]
        bias_O = norm.bias.double() - norm.running_mean.double() * scale_O
        return FoldedConv(
            weight_OIKL=weight_OIKL.to(self._dtype).contiguous(memory_format=self._layout),
            bias_O=bias_O.to(self._dtype),
            stride=(convolution.stride[0], convolution.stride[1]),
            padding=(int(convolution.padding[0]), int(convolution.padding[1])),
        )
