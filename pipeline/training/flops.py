"""Floating-point operations that really run, and how many the machine could do.

torch's counter sees them below autograd, so what a frozen base spares is not counted. It knows
matrix products and convolutions, but not the fused attention of its CPU kernels, which would go
uncounted. What is elementwise (norms, activations, softmax, the optimizer) counts nothing anywhere,
so shares of a matrix product's rate are on the low side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from pipeline.training.config import EngineConfig

Shape = Sequence[int]
_LENGTH_CLASS = 16
"""Tokens by which lengths are rounded up: batches of a class count as equal."""
_SIDE = {"cpu": 1024, "cuda": 8192}
_PRODUCTS = 4


def _forward(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _backward(grad: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    # Includes the scores, which the backward pass computes again.
    return int(sdpa_backward_flop_count(grad, query, key, value))


_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


def flop_counter() -> FlopCounterMode:
    """Counts the operations of what runs inside; a multiply-add is two."""
    return FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)


def count_flops(work: Callable[[], object]) -> int:
    """Runs some work once and counts its floating-point operations."""
    with flop_counter() as counter:
        work()
    return int(counter.get_total_flops())


class StepFlops:
    """Operations of micro-batches: the first of each class of shapes is counted while it runs.

    Counting changes no result and takes as long as a few hundred small kernels. Batches whose
    lengths are the same when rounded up to 16 are a class, and count as much as its first.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        """Has counted nothing yet.

        Args:
            enabled: False where counting would get in the way, as in compiled layers.
        """
        self._enabled = enabled
        self._known: dict[tuple[int, ...], int] = {}

    @contextmanager
    def counted(self, source_BS: Tensor, target_BT: Tensor, images_BCHW: Tensor) -> Iterator[None]:
        """Counts what runs inside if no batch of such shapes was counted before."""
        shape = _class_of(source_BS, target_BT, images_BCHW)
        if not self._enabled or shape in self._known:
            yield
            return
        with flop_counter() as counter:
            yield
        self._known[shape] = int(counter.get_total_flops())

    def of(self, source_BS: Tensor, target_BT: Tensor, images_BCHW: Tensor) -> int:
        """Operations of a batch that was counted, itself or by another of its class; else 0."""
        return self._known.get(_class_of(source_BS, target_BT, images_BCHW), 0)


def _class_of(source_BS: Tensor, target_BT: Tensor, images_BCHW: Tensor) -> tuple[int, ...]:
    lengths = (-(-tensor.shape[1] // _LENGTH_CLASS) for tensor in (source_BS, target_BT))
    return (len(source_BS), *lengths, *images_BCHW.shape[2:])


def peak_flops(engine: EngineConfig, device: torch.device) -> float:
    """Operations a second that a rank could do, as it is set or else as it is measured now."""
    if engine.peak_tflops is not None:
        return engine.peak_tflops * 1e12
    return measured_peak_flops(
        device, torch.bfloat16 if engine.precision == "bf16" else torch.float32
    )


def measured_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large square matrix product: the best of a few, in under a second.

    Args:
        device: Where; on a CPU with the threads of this process.
        dtype: What is computed in.
    """
    side = _SIDE.get(device.type, _SIDE["cpu"])
    left, right, out = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(3))
    best = float("inf")
    for _ in range(_PRODUCTS):
        began = time.perf_counter()
        torch.mm(left, right, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return float(2 * side**3) / best
