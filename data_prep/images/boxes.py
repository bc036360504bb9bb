"""Boxes that follow their image: clipped, turned and scaled as it was."""

from data_prep.images.stored import SWAPPED, StoredImage
from data_prep.quarantine import Reason, Rejected
from data_prep.readers.base import Corners


def stored_box(box: Corners, image: StoredImage) -> Corners:
    """Carries a box from the original file's pixels to the stored image's.

    The box is clipped to the image, turned as the image was and scaled. An image that was neither
    turned nor resized leaves it as it is, to the last bit.

    Raises:
        Rejected: Nothing of the box lies inside the image.
    """
    width, height = image.facts.original_width, image.facts.original_height
    x0, y0 = max(0.0, box[0]), max(0.0, box[1])
    x1, y1 = min(float(width), box[2]), min(float(height), box[3])
    if not (x0 < x1 and y0 < y1):
        raise Rejected(Reason.BAD_BOX, f"box {box} lies outside {width} x {height} pixels")
    x0, y0, x1, y1 = _turned((x0, y0, x1, y1), width, height, image.orientation)
    if image.orientation in SWAPPED:
        width, height = height, width
    across, down = image.facts.width, image.facts.height
    if (width, height) != (across, down):
        # Multiply first, so that a box on the far edge lands on the edge and not beyond.
        x0, x1 = x0 * across / width, x1 * across / width
        y0, y1 = y0 * down / height, y1 * down / height
    if not (x0 < x1 and y0 < y1):
        raise Rejected(Reason.BAD_BOX, f"box {box} is too small to be told from nothing")
    return x0, y0, x1, y1


def _turned(box: Corners, width: int, height: int, orientation: int) -> Corners:
    x0, y0, x1, y1 = box
    if orientation in (2, 3, 7, 8):
        x0, x1 = width - x1, width - x0
    if orientation in (3, 4, 6, 7):
        y0, y1 = height - y1, height - y0
    return (y0, x0, y1, x1) if orientation in SWAPPED else (x0, y0, x1, y1)
