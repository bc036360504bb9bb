"""Moving averages: their values, their stay in the live tensors, and their file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.errors import CheckpointError
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


def test_a_saved_average_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    live = _live()
    average = MovingAverage(lambda: live, 0.9)
    live["a"].add_(1.0)
    average.update(1)
    average.save(tmp_path / "average.safetensors")
    other = MovingAverage(lambda: live, 0.9)
    other.load(tmp_path / "average.safetensors")
    for running in (average, other):
        running.update(2)
    ours, theirs = _averages(other, live), _averages(average, live)
    assert all(torch.equal(ours[name], theirs[name]) for name in live)


def test_another_models_average_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "average.safetensors"
    MovingAverage(_live, 0.9).save(path)
    other = MovingAverage(lambda: {"a": torch.zeros(3)}, 0.9)
    with pytest.raises(CheckpointError, match="other parameters"):
        other.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        other.load(path)
