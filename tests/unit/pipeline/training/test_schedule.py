from __future__ import annotations

import itertools
import math

import pytest

from pipeline.training.config import ScheduleConfig
from pipeline.training.schedule import learning_rate, warmup_steps


def test_warm_up_rises_to_the_peak_and_the_decay_ends_near_zero() -> None:
    config = ScheduleConfig(warmup_ratio=0.1)
    rates = [learning_rate(config, 1.0, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(1 / 90)
    assert learning_rate(config, 1.0, 100, 100) == 0.0


@pytest.mark.parametrize(
    ("name", "power", "halfway"),
    [("polynomial", 1.0, 0.55), ("polynomial", 2.0, 0.325), ("cosine", 1.0, 0.55)],
)
def test_halfway(name: str, power: float, halfway: float) -> None:
    config = ScheduleConfig(name=name, warmup_steps=0, power=power, final_lr=0.1)  # type: ignore[arg-type]
    assert learning_rate(config, 1.0, 50, 100) == pytest.approx(halfway)


def test_a_cosine_starts_and_ends_flat() -> None:
    config = ScheduleConfig(name="cosine", warmup_steps=20, final_lr=0.2)
    rates = [learning_rate(config, 1.0, step, 100) for step in range(20, 101)]
    assert rates[0] == 1.0
    assert rates[20] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rates[-1] == pytest.approx(0.2)
    falls = [before - after for before, after in itertools.pairwise(rates)]
    assert min(falls) > 0
    assert max(falls) == max(falls[35:45])
    assert falls[0] < 0.1 * max(falls)


@pytest.mark.parametrize("name", ["polynomial", "cosine", "constant"])
def test_no_step_is_at_zero_or_above_the_peak(name: str) -> None:
    config = ScheduleConfig(name=name, warmup_ratio=0.25)  # type: ignore[arg-type]
    rates = [learning_rate(config, 3.0, step, 8) for step in range(8)]
    assert max(rates) == 3.0
    assert min(rates) > 0


def test_constant_stays() -> None:
    config = ScheduleConfig(name="constant", warmup_steps=2)
    assert [learning_rate(config, 4.0, step, 9) for step in (0, 1, 2, 8)] == [2.0, 4.0, 4.0, 4.0]


def test_steps_win_over_the_ratio_and_fit_the_run() -> None:
    assert warmup_steps(ScheduleConfig(warmup_steps=300), 10) == 10
    assert warmup_steps(ScheduleConfig(warmup_ratio=0.06), 100) == 6
