"""Floating-point operations that really run, counted by torch below autograd.

torch's counter knows matrix products and convolutions, but not the fused attention of its CPU
kernels, which would go uncounted. What is elementwise (norms, activations, softmax, the optimizer)
counts nothing anywhere, so shares of a matrix-product ceiling are on the low side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

Shape = Sequence[int]


def _forward(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _backward(grad: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    # Includes the scores, which the backward pass computes again.
    return int(sdpa_backward_flop_count(grad, query, key, value))


_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


def count_flops(work: Callable[[], object]) -> int:
    """Run some work once and count its floating-point operations; a multiply-add is two."""
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        work()
    return int(counter.get_total_flops())
