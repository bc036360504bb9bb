"""How well a predicted box fits the true one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Corners = Sequence[float]
"""x0, y0, x1, y1 in pixels of one image."""


def overlap(predicted: Corners, true: Corners) -> float:
    """Intersection over union of two boxes, in [0, 1].

    Boxes that only touch, and predictions whose corners are swapped, have none. Computed in float32
    with the reference's constant in the union, which decides ties at a threshold.
    """
    first, second = np.asarray(predicted, np.float32), np.asarray(true, np.float32)
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    if np.any(sides <= 0):
        return 0.0
    shared = sides.prod()
    areas = (first[2:] - first[:2]).prod() + (second[2:] - second[:2]).prod()
    return float(shared / (areas - shared + np.float32(1e-6)))


def box_accuracy(
    predicted: Sequence[Corners | None], true: Sequence[Corners], threshold: float = 0.5
) -> float:
    """Share of predictions whose overlap with the true box reaches the threshold.

    Args:
        predicted: None where no box was said; it counts as a miss.
        true: One box for each prediction.
        threshold: Least overlap of a hit.
    """
    hits = [
        box is not None and overlap(box, goal) >= threshold
        for box, goal in zip(predicted, true, strict=True)
    ]
    return sum(hits) / len(hits) if hits else 0.0
