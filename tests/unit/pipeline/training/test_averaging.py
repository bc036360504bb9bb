"""Moving averages: their values, their stay in the live tensors, and what comes back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.training.averaging import MovingAverage


def _live() -> dict[str, Tensor]:
    return {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[0.5]])}


def _averages(average: MovingAverage, live: dict[str, Tensor]) -> dict[str, Tensor]:
    with average.in_place():
        return {name: tensor.clone() for name, tensor in live.items()}


def test_values_follow_the_definition() -> None:
    live = _live()
    average = MovingAverage(lambda: live, 0.6)
    expected = {name: tensor.double() for name, tensor in live.items()}
    for step in range(1, 30):
        for tensor in live.values():
            tensor.add_(0.1 * step)
        average.update(step)
        kept = min(0.6, (1 + step) / (10 + step))
        expected = {n: kept * expected[n] + (1 - kept) * live[n].double() for n in live}
    for name, tensor in _averages(average, live).items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_what_was_there_comes_back_bit_by_bit_also_after_an_error() -> None:
    live = {"a": torch.randn(1000)}
    average = MovingAverage(lambda: live, 0.9)
    live["a"].normal_()
    before = live["a"].clone()

    def break_off() -> None:
        with average.in_place():
            assert not torch.equal(live["a"], before)
            raise KeyError

    with pytest.raises(KeyError):
        break_off()
    assert torch.equal(live["a"], before)
