"""What becomes of an image: its bytes in the shard, and the facts that the sample carries."""

import hashlib
from dataclasses import dataclass

from PIL import Image

from data_prep.schema import ImageFacts

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of an EXIF orientation upright."""
SWAPPED = (5, 6, 7, 8)
"""Orientations whose upright image has width and height exchanged."""


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image as it goes into a shard, and how it was turned to get there.

    facts.original_width and facts.original_height are those of the file, before any turning.
    """

    content: bytes
    facts: ImageFacts
    orientation: int = 1


def stored(
    content: bytes,
    kind: str,
    size: tuple[int, int],
    original: tuple[int, int],
    name: str,
    orientation: int,
) -> StoredImage:
    """Bytes of a shard with their facts; kind is Pillow's name of the format."""
    facts = ImageFacts(
        width=size[0],
        height=size[1],
        format=kind,
        sha256=hashlib.sha256(content).hexdigest(),
        original_width=original[0],
        original_height=original[1],
        name=name,
    )
    return StoredImage(content=content, facts=facts, orientation=orientation)
