"""EXIF, as far as it is needed: the orientation, and whether the rest is fit for other readers.

EXIF is a small TIFF: entries of 12 bytes, whose longer values lie anywhere in it. Thousands of
entries may name the same long value, and a reader that copies each of them needs gigabytes for a
file of kilobytes. So orientation is looked up here without touching any other value.
"""

import struct
from typing import NamedTuple

_ORIENTATION_TAG = 0x0112
_ENTRY_BYTES = 12
_UNIT_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SHORT = 3
_COPIES = 2
"""Values may add up to this many times the block before it counts as a bomb."""


class Exif(NamedTuple):
    """What an EXIF block says.

    Attributes:
        orientation: 1 to 8; 1 where the block says nothing valid.
        sound: Its values do not add up to more than the block can honestly hold.
    """

    orientation: int
    sound: bool


UPRIGHT = Exif(1, True)


def read_exif(block: bytes) -> Exif:
    """Reads an EXIF block, with or without its 'Exif' mark; what is damaged says nothing."""
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 8:
        return UPRIGHT
    (first,) = struct.unpack_from(f"{order}I", block, 4)
    if first + 2 > len(block):
        return UPRIGHT
    (count,) = struct.unpack_from(f"{order}H", block, first)
    entry = struct.Struct(f"{order}HHI")
    orientation, total = 1, 0
    for at in range(first + 2, first + 2 + count * _ENTRY_BYTES, _ENTRY_BYTES):
        if at + _ENTRY_BYTES > len(block):
            break
        tag, kind, units = entry.unpack_from(block, at)
        total += min(units * _UNIT_BYTES.get(kind, 1), len(block))
        if tag == _ORIENTATION_TAG and kind == _SHORT and units == 1:
            (value,) = struct.unpack_from(f"{order}H", block, at + 8)
            orientation = value if 1 <= value <= 8 else 1
    return Exif(orientation, total <= _COPIES * len(block))
