"""Adapters: a small bottleneck behind the feed-forward block of every layer.

Dimensions: B batch, N positions, D width.
Source: Houlsby et al., arXiv 1902.00751; one a layer, behind the feed-forward block, with ReLU and
N(0, 0.02), as the prompt tuning paper's baseline has it (arXiv 2208.02532).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model.ofa import OFAConfig, Prompts
from model.tuning.config import AdapterConfig, TuningConfig
from model.tuning.method import TuningMethod


class Adapter(nn.Module):
    """Down to a bottleneck and up again, beside an identity."""

    def __init__(self, width: int, config: AdapterConfig) -> None:
        super().__init__()
        self.down_proj = nn.Linear(width, config.dim)
        self.up_proj = nn.Linear(config.dim, width)
        for linear in (self.down_proj, self.up_proj):
            nn.init.normal_(linear.weight, std=config.init_std)
            nn.init.zeros_(linear.bias)

    def forward(self, y_BND: Tensor) -> Tensor:
        """Map `[B, N, D]` to `[B, N, D]`."""
        adapted_BND: Tensor = y_BND + self.up_proj(F.relu(self.down_proj(y_BND)))
        return adapted_BND


class AdapterTuning(TuningMethod):
    """One adapter for each layer of both stacks of a frozen base.

    They are handed down the layers like a prompt and never become part of the base: its names and
    its fingerprint stay what they are, and other prompts can share it.
    """

    def __init__(self, base: OFAConfig, config: TuningConfig) -> None:
        super().__init__(base, config)

        def stack(depth: int) -> nn.ModuleList:
            return nn.ModuleList(Adapter(base.d_model, config.adapter) for _ in range(depth))

        self.encoder = stack(base.encoder_layers)
        self.decoder = stack(base.decoder_layers)

    def prompts(self) -> Prompts:
        """Return the adapters of both stacks."""
        return Prompts(encoder_adapters=tuple(self.encoder), decoder_adapters=tuple(self.decoder))
