"""Overlap of boxes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.boxes import box_accuracy, overlap

SIDE = st.floats(0, 500, width=32)


def test_overlap_of_known_boxes() -> None:
    assert overlap([0, 0, 10, 10], [0, 0, 10, 10]) == pytest.approx(1.0)
    assert overlap([0, 0, 10, 10], [5, 0, 15, 10]) == pytest.approx(1 / 3)
    assert overlap([0, 0, 10, 10], [10, 0, 20, 10]) == 0.0
    assert overlap([10, 10, 0, 0], [0, 0, 10, 10]) == 0.0


def test_a_missing_box_is_a_miss() -> None:
    assert box_accuracy([None, [0, 0, 2, 2]], [[0, 0, 2, 2], [0, 0, 2, 2]]) == 0.5


@given(st.tuples(SIDE, SIDE, SIDE, SIDE), st.tuples(SIDE, SIDE, SIDE, SIDE))
def test_overlap_is_symmetric_and_bounded(
    first: tuple[float, ...], second: tuple[float, ...]
) -> None:
    one = (*map(min, first[:2], first[2:]), *map(max, first[:2], first[2:]))
    other = (*map(min, second[:2], second[2:]), *map(max, second[:2], second[2:]))
    assert 0.0 <= overlap(one, other) <= 1.0 + 1e-5
    assert overlap(one, other) == overlap(other, one)
