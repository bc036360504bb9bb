"""Activation checkpointing: a layer's activations are computed again in the backward pass.

What is kept is the input of each layer, which lets a batch grow by what the rest took; the price is
a second forward pass (arXiv 1604.06174). Gradients are the same, dropout included.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_layer(layer: nn.Module, *inputs: object, recompute: bool) -> Tensor:
    """Run one layer.

    Args:
        layer: a layer that returns one tensor.
        inputs: its arguments, in order.
        recompute: forget the activations until the backward pass; without gradients there is
            nothing to keep, and the layer runs plainly.
    """
    output: Tensor
    if recompute and torch.is_grad_enabled():
        output = checkpoint(layer, *inputs, use_reentrant=False)
    else:
        output = layer(*inputs)
    return output
