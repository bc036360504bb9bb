"""Boxes to location bins and back.

A coordinate is scaled by how far the picture was resized, divided by the maximum image size (not by
the present one) and rounded, half to even. All arithmetic is float32: that is what decides ties in
the published models.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def box_to_bins(
    box_xyxy: Sequence[float],
    image_wh: tuple[int, int],
    image_size: int,
    max_image_size: int,
    bin_count: int,
) -> list[int]:
    """The four bins of a box, x0 y0 x1 y1.

    Args:
        box_xyxy: corners in pixels of the original picture.
        image_wh: its width and height in pixels.
        image_size: side in pixels of the square that the model sees.
        max_image_size: length in pixels that the last bin stands for.
        bin_count: number of bins.

    Raises:
        ValueError: the box reaches beyond the bins or is not finite.
    """
    scaled = np.asarray(box_xyxy, dtype=np.float32) * _ratios(image_wh, image_size)
    bins = np.rint(scaled / np.float32(max_image_size) * np.float32(bin_count - 1))
    if not np.all((bins >= 0) & (bins < bin_count)):
        raise ValueError(f"box {list(box_xyxy)} of a picture {image_wh} has no bins")
    return [int(number) for number in bins]


def bins_to_box(
    bins: Sequence[int],
    image_wh: tuple[int, int],
    image_size: int,
    max_image_size: int,
    bin_count: int,
) -> list[float]:
    """The box, in pixels of the original picture, that four bins stand for.

    Args:
        bins: x0 y0 x1 y1, each below `bin_count`.
        image_wh: width and height of the original picture in pixels.
        image_size: side in pixels of the square that the model sees.
        max_image_size: length in pixels that the last bin stands for.
        bin_count: number of bins.
    """
    shares = np.asarray(bins, dtype=np.float32) / np.float32(bin_count - 1)
    box = shares * np.float32(max_image_size) / _ratios(image_wh, image_size)
    return [float(coordinate) for coordinate in box]


def _ratios(image_wh: tuple[int, int], image_size: int) -> NDArray[np.float32]:
    width, height = image_wh
    across, down = image_size / width, image_size / height
    return np.array([across, down, across, down], dtype=np.float32)
