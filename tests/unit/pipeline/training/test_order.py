from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.order import Component, SampleOrder


def component(sizes: list[int], dataset: int = 0, weight: float = 1.0, first: int = 0) -> Component:
    blocks, start = [], first
    for size in sizes:
        blocks.append((dataset, np.arange(start, start + size)))
        start += size
    return Component(tuple(blocks), weight)


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    streams=st.sampled_from([1, 4, 8]),
    epoch=st.integers(0, 3),
)
def test_an_epoch_has_every_sample(sizes: list[int], streams: int, epoch: int) -> None:
    order = SampleOrder([component(sizes)], seed=1, streams=streams)
    length = order.epoch_length
    seen = Counter(order.at(epoch * length + place).row for place in range(length))
    assert set(seen) == set(range(sum(sizes)))
    assert length - sum(sizes) < streams
    # What fills up the ends of the streams, each of which repeats at most one sample.
    assert sum(count - 1 for count in seen.values()) < streams


@given(sizes=st.lists(st.integers(8, 40), min_size=1, max_size=6))
def test_drop_never_repeats(sizes: list[int]) -> None:
    order = SampleOrder([component(sizes)], seed=1, streams=8, uneven="drop")
    seen = Counter(order.at(place).row for place in range(order.epoch_length))
    assert set(seen.values()) == {1}
    assert sum(sizes) - order.epoch_length < 8


@pytest.mark.parametrize("weights", [None, (0.7, 0.3)])
def test_global_batches_do_not_depend_on_ranks(weights: tuple[float, float] | None) -> None:
    parts = [component([30, 50]), component([40], dataset=1)]
    if weights:
        parts = [Component(p.blocks, w) for p, w in zip(parts, weights, strict=True)]
    orders = {n: SampleOrder(parts, seed=5, streams=8) for n in (1, 2, 4, 8)}
    for start in range(0, 800, 16):
        batches = {
            n: sorted(ref for rank in range(n) for ref in order.share(start, start + 16, rank, n))
            for n, order in orders.items()
        }
        assert batches[1] == batches[2] == batches[4] == batches[8]


def test_a_rank_reads_whole_streams() -> None:
    order = SampleOrder([component([100])], seed=0, streams=8)
    places = [ref.place for ref in order.share(40, 80, rank=1, ranks=4)]
    assert {place % 8 for place in places} == {1, 5}


def test_any_place_is_found_without_those_before() -> None:
    parts = [component([300], weight=1), component([50], dataset=1, weight=2)]
    forward = SampleOrder(parts, seed=3, streams=4)
    walked = [forward.at(place) for place in range(20_000)]
    for place in (0, 19_999, 4_001, 12_345):
        assert SampleOrder(parts, seed=3, streams=4).at(place) == walked[place]


def test_mixture_keeps_its_weights() -> None:
    parts = [component([300], weight=0.65), component([50], dataset=1, weight=0.35)]
    order = SampleOrder(parts, seed=3, streams=4)
    drawn = Counter(order.at(place).dataset for place in range(4_000))
    assert drawn == {0: 2_600, 1: 1_400}


def test_seeds_and_epochs_give_other_orders() -> None:
    def rows(seed: int, epoch: int) -> list[int]:
        order = SampleOrder([component([64])], seed=seed, streams=4)
        return [order.at(epoch * 64 + place).row for place in range(64)]

    assert rows(0, 0) == rows(0, 0)
    assert len({tuple(rows(0, 0)), tuple(rows(0, 1)), tuple(rows(1, 0))}) == 3


def test_the_order_is_that_of_earlier_versions() -> None:
    """A checkpoint names a place in the order, so another order would repeat and skip samples."""
    blocks = ((0, np.arange(30)), (0, np.arange(30, 41)), (1, np.arange(5, 25)))
    parts = [Component(blocks, 0.7), Component(((1, np.arange(25, 60)),), 0.3)]
    orders = [SampleOrder(chosen, seed=5, streams=8) for chosen in (parts[:1], parts)]
    texts = [str([tuple(order.at(place)) for place in range(3000)]) for order in orders]
    assert [hashlib.sha256(text.encode()).hexdigest() for text in texts] == [
        "138e69f13ef351f4bfd820a700fb8368e5d4c8291d8e840e6e7cbdfe5a45eca9",
        "5332477eaaff2d5c5185b25e5bad1e92b1710f6d00805aff649e7daed1fe153d",
    ]


def test_a_batch_mixes_shards() -> None:
    order = SampleOrder([component([1000] * 8)], seed=0, streams=64)
    for start in range(0, 6_400, 64):
        shards = {order.at(place).row // 1000 for place in range(start, start + 64)}
        assert len(shards) == 8


def test_ranks_must_divide_streams() -> None:
    order = SampleOrder([component([10])], seed=0, streams=8)
    with pytest.raises(ValueError, match="3 ranks do not divide 8 streams"):
        order.share(0, 8, 0, 3)


def test_too_few_samples_to_drop_any() -> None:
    with pytest.raises(ValueError, match="too few"):
        SampleOrder([component([5])], seed=0, streams=8, uneven="drop")
