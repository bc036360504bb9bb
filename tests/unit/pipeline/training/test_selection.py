"""Which validation is best, in which direction, and when a run stops waiting for a better one."""

from __future__ import annotations

import math

import pytest

from pipeline.errors import ConfigError
from pipeline.training.checkpoint import RunState
from pipeline.training.config import TrainingConfig
from pipeline.training.selection import Selection

START = RunState(
    step=0,
    total_steps=100,
    base_fingerprint="sha256:0",
    datasets={},
    ranks=1,
    zero_stage=1,
    global_batch=4,
    seconds=0.0,
)


def judge(config: TrainingConfig, *values: float) -> list[RunState]:
    """The state after each validation."""
    selection, state, states = Selection(config), START, []
    for value in values:
        state = selection.judged(state, {selection.metric: value, "other": 0.0})
        states.append(state)
    return states


def best_of(states: list[RunState]) -> list[float]:
    return [state.best.value for state in states if state.best is not None]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [3.0, 1.0, 1.0]),
        ({"best_metric": "validation/nll"}, [3.0, 1.0, 1.0]),
        ({"best_metric": "vqa/accuracy"}, [3.0, 3.0, 4.0]),
        ({"best_metric": "vqa/accuracy", "best_direction": "smaller"}, [3.0, 1.0, 1.0]),
        ({"best_metric": "validation/loss", "best_direction": "larger"}, [3.0, 3.0, 4.0]),
    ],
)
def test_the_direction_is_known_or_said(settings: dict[str, str], expected: list[float]) -> None:
    config = TrainingConfig(**settings)  # type: ignore[arg-type]
    assert best_of(judge(config, 3.0, 1.0, 4.0)) == expected


def test_equal_is_not_better() -> None:
    first, second = judge(TrainingConfig(), 1.0, 1.0)
    assert second.best is first.best


def test_patience_counts_validations_since_the_last_better_one() -> None:
    config = TrainingConfig(patience=2, validate_every_steps=5)
    states = judge(config, 3.0, 3.1, 2.0, 2.5, 2.4)
    assert [state.stale for state in states] == [0, 1, 0, 1, 2]
    selection = Selection(config)
    assert [selection.gives_up(state) for state in states] == [False] * 4 + [True]
    assert not Selection(TrainingConfig()).gives_up(states[-1])


def test_small_gains_are_kept_but_do_not_count() -> None:
    config = TrainingConfig(patience=3, min_delta=0.5, validate_every_steps=5)
    states = judge(config, 3.0, 2.8, 2.6, 2.4)
    assert best_of(states) == [3.0, 2.8, 2.6, 2.4]
    # Small gains add up: the third is 0.6 better than what counted last.
    assert [state.stale for state in states] == [0, 1, 2, 0]


def test_a_value_that_is_no_number_never_stays_the_best() -> None:
    states = judge(TrainingConfig(), math.nan, 5.0, math.nan)
    assert best_of(states)[1:] == [5.0, 5.0]
    assert [state.stale for state in states] == [0, 0, 1]


def test_a_metric_that_is_not_measured_is_named() -> None:
    selection = Selection(TrainingConfig(best_metric="vqa/acuracy"))
    with pytest.raises(ConfigError, match=r"'vqa/acuracy': there is only validation/loss"):
        selection.judged(START, {"validation/loss": 1.0})
