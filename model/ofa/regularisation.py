"""Dropout and stochastic depth, one setting for the whole model.

Both stacks hold the same object, so that a training recipe sets the rates in one place and a frozen
base can be run with or without them.

Dimensions: B batch, the rest as the caller has it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.ofa.prompts import LayerAdapter


@dataclass
class Regularisation:
    """Rates in 0..1; zero switches off. Active in training mode only."""

    dropout: float = 0.0
    """On embeddings and at the end of each residual branch."""
    drop_path: float = 0.0
    """Share of samples for which a residual branch is skipped (arXiv 1603.09382)."""

    def embedding(self, x: Tensor, training: bool) -> Tensor:
        """Apply dropout to embeddings of any shape."""
        return F.dropout(x, self.dropout, training)

    def branch(self, y: Tensor, training: bool, adapter: LayerAdapter | None = None) -> Tensor:
        """Apply dropout and stochastic depth to the output `[B, ...]` of a residual branch.

        An adapter works between the two, as in the published models: it sees what dropout left, and
        is skipped with its branch.
        """
        y = F.dropout(y, self.dropout, training)
        if adapter is not None:
            y = adapter(y)
        if not training or self.drop_path == 0.0:
            return y
        keep = 1.0 - self.drop_path
        kept_B = torch.rand(y.shape[0], device=y.device) < keep
        return y * (kept_B.to(y.dtype) / keep).view(-1, *([1] * (y.dim() - 1)))
