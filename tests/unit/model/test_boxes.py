"""Boxes and bins beyond the published cases."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.boxes import bins_to_box, box_to_bins


@given(
    width=st.integers(16, 4000),
    height=st.integers(16, 4000),
    shares=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    bin_count=st.sampled_from((48, 96, 1000)),
)
def test_a_round_trip_stays_within_half_a_bin(
    width: int, height: int, shares: list[float], bin_count: int
) -> None:
    box = [share * side for share, side in zip(shares, (width, height) * 2, strict=True)]
    bins = box_to_bins(box, (width, height), 96, 96, bin_count)
    back = bins_to_box(bins, (width, height), 96, 96, bin_count)
    for coordinate, returned, side in zip(box, back, (width, height) * 2, strict=True):
        assert abs(coordinate - returned) <= side / (bin_count - 1) * 0.501


def test_ties_round_to_the_even_bin() -> None:
    # 48 bins over 94 pixels: two pixels a bin, so odd pixels lie between two bins.
    assert box_to_bins([1, 3, 5, 7], (94, 94), 94, 94, 48) == [0, 2, 2, 4]


def test_the_scale_is_the_maximum_size_not_the_present_one() -> None:
    assert box_to_bins([0, 0, 100, 100], (100, 100), 480, 512, 1000) == [0, 0, 937, 937]


@pytest.mark.parametrize(
    "box",
    [[0, 0, 120, 50], [-5, 0, 10, 10], [0, 0, float("nan"), 10]],
    ids=["beyond", "negative", "nan"],
)
def test_a_box_without_bins_is_refused(box: list[float]) -> None:
    with pytest.raises(ValueError, match="has no bins"):
        box_to_bins(box, (100, 100), 96, 96, 48)
