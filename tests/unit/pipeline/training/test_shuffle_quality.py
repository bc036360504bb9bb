"""How well an epoch is mixed, beside a uniform shuffle of all samples.

The measures and their values stand in docs/design/data-order.md.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.training.order import Component, SampleOrder

SAMPLES = 20_000
BATCH = 64
MIXED = {
    (20, 8): 0.40,
    (200, 8): 0.14,
    (2000, 8): 0.19,
    (20, 64): 0.99,
    (200, 64): 0.99,
    (2000, 64): 0.99,
    (20, 512): 0.15,
    (200, 512): 0.44,
    (2000, 512): 0.99,
}
"""Least number of shards of a batch, for shards and streams, over that of a uniform shuffle."""


def epochs(shards: int, streams: int, count: int = 2) -> list[NDArray[np.int64]]:
    """Rows of some epochs in their order, each row once."""
    blocks = np.array_split(np.arange(SAMPLES), shards)
    order = SampleOrder([Component(tuple((0, b) for b in blocks))], seed=3, streams=streams)
    length = order.epoch_length
    found = []
    for epoch in range(count):
        rows = np.array([order.at(epoch * length + place).row for place in range(length)])
        # Without what fills up the ends of the streams.
        found.append(rows[np.sort(np.unique(rows, return_index=True)[1])])
    return found


def displacement(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Mean way of a sample from its place in one order to that in another.

    As a share of the epoch, over that of two uniform shuffles (1/3): 1 is as good as those.
    """
    places = np.empty((2, SAMPLES), dtype=np.int64)
    places[0, first], places[1, second] = np.arange(SAMPLES), np.arange(SAMPLES)
    return float(np.abs(places[0] - places[1]).mean()) / SAMPLES * 3


def correlation(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Spearman's rank correlation of the places in two orders: 0 for uniform shuffles."""
    places = np.empty((2, SAMPLES), dtype=np.float64)
    places[0, first], places[1, second] = np.arange(SAMPLES), np.arange(SAMPLES)
    return float(np.corrcoef(places)[0, 1])


def shards_of_batches(rows: NDArray[np.int64], shards: int) -> float:
    """Mean number of shards that a batch comes from, over that of a uniform shuffle."""
    of_row = np.repeat(np.arange(shards), [len(b) for b in np.array_split(rows, shards)])

    def mean(order: NDArray[np.int64]) -> float:
        batches = of_row[order[: len(order) // BATCH * BATCH]].reshape(-1, BATCH)
        return float(np.mean([len(set(batch)) for batch in batches.tolist()]))

    return mean(rows) / mean(np.random.default_rng(0).permutation(SAMPLES))


@pytest.mark.parametrize(("shards", "streams"), list(MIXED))
def test_an_epoch_is_mixed(shards: int, streams: int) -> None:
    first, second = epochs(shards, streams)
    stored = np.arange(SAMPLES)
    print(
        f"| {shards} | {streams} | {displacement(stored, first):.2f} |"
        f" {displacement(first, second):.2f} | {correlation(first, second):+.3f} |"
        f" {shards_of_batches(first, shards):.2f} |"
    )
    assert displacement(stored, first) > 0.85
    assert displacement(first, second) > 0.85
    assert abs(correlation(first, second)) < 0.2
    assert shards_of_batches(first, shards) > MIXED[shards, streams]


def test_the_measures_see_a_bad_order() -> None:
    stored = np.arange(SAMPLES)
    assert displacement(stored, stored) == 0
    assert correlation(stored, stored) == pytest.approx(1)
    assert shards_of_batches(stored, 200) < 0.1
    shuffled = np.random.default_rng(1).permutation(SAMPLES)
    assert displacement(stored, shuffled) == pytest.approx(1, abs=0.02)
    assert abs(correlation(stored, shuffled)) < 0.03
    assert shards_of_batches(shuffled, 200) == pytest.approx(1, abs=0.01)
