"""A rank that waits for data is named, once, with what to do about it."""

from __future__ import annotations

import pytest

from pipeline.training.data_config import DataConfig
from pipeline.training.starving import DataWaitAdvice


def test_the_rank_that_waits_most_is_named_once() -> None:
    advice = DataWaitAdvice(DataConfig(loader_workers=2))
    assert advice.about([0.9, 0.9]) is None  # the workers are still starting
    said = advice.about([0.02, 0.42])
    assert said is not None
    assert said.startswith("rank 1 waits for data 42% of the time (all ranks: 22%): ")
    assert "data.loader_workers (now 2)" in said
    assert advice.about([0.02, 0.42]) is None
    assert advice.about([0.02, 0.03]) is None
    assert advice.about([0.5, 0.0]) is not None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (DataConfig(loader_workers=0), "data.loader_workers = 1"),
        (DataConfig(loader="threads"), "data.loader = processes"),
        (DataConfig(loader="processes"), "the storage is too slow"),
    ],
)
def test_the_advice_is_about_what_is_set(data: DataConfig, said: str) -> None:
    advice = DataWaitAdvice(data)
    advice.about([0.0])
    assert said in (advice.about([0.5]) or "")
