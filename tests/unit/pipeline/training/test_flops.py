"""Operations of micro-batches: as torch counts them, once for each class of shapes."""

from __future__ import annotations

import torch

from pipeline.training.config import EngineConfig
from pipeline.training.flops import StepFlops, peak_flops

CPU = torch.device("cpu")


def shapes(batch: int, source: int, target: int) -> tuple[torch.Tensor, ...]:
    images = torch.zeros(batch, 3, 32, 32)
    return torch.zeros(batch, source), torch.zeros(batch, target), images


def product(side: int) -> None:
    torch.mm(torch.ones(side, side), torch.ones(side, side))


def test_the_first_of_a_class_is_counted_and_stands_for_the_others() -> None:
    flops = StepFlops()
    for side, shape in ((8, shapes(2, 17, 5)), (16, shapes(2, 32, 16)), (16, shapes(4, 17, 5))):
        with flops.counted(*shape):
            product(side)
    assert flops.of(*shapes(2, 20, 1)) == 2 * 8**3
    assert flops.of(*shapes(4, 20, 1)) == 2 * 16**3
    assert flops.of(*shapes(2, 33, 1)) == 0


def test_an_error_inside_leaves_nothing_counted() -> None:
    flops = StepFlops()
    try:
        with flops.counted(*shapes(1, 1, 1)):
            raise RuntimeError
    except RuntimeError:
        assert flops.of(*shapes(1, 1, 1)) == 0


def test_nothing_is_counted_where_it_is_switched_off() -> None:
    flops = StepFlops(enabled=False)
    with flops.counted(*shapes(1, 1, 1)):
        product(8)
    assert flops.of(*shapes(1, 1, 1)) == 0


def test_the_peak_is_as_set_or_measured() -> None:
    assert peak_flops(EngineConfig(peak_tflops=2.5), CPU) == 2.5e12
    # Any machine does more than a tenth of a GFLOP/s, and no rank a PFLOP/s on a CPU.
    assert 1e8 < peak_flops(EngineConfig(), CPU) < 1e15
