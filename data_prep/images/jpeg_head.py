"""The segments of a JPEG before its first scan, read without decoding anything.

They tell what decoding would cost. Every scan of a progressive JPEG passes over all pixels, and a
scan that says nothing takes ten bytes: a file of one megabyte can hold a hundred thousand scans
and keep a decoder busy for hours, inside a single call.
"""

from dataclasses import dataclass

from data_prep.images.exif import UPRIGHT, Exif, read_exif
from data_prep.quarantine import Reason, Rejected

MAGIC = b"\xff\xd8\xff"
_SCAN = b"\xff\xda"
_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
"""Sequential and progressive frames with Huffman or arithmetic coding."""
_OTHER_FRAMES = frozenset({0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF})
"""Lossless and hierarchical frames."""
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_APP0, _APP1, _APP14, _APP15, _COMMENT = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE


@dataclass(frozen=True, kw_only=True)
class JpegHead:
    """What a JPEG says of itself.

    Attributes:
        size: Width and height in pixels, as stored in the file.
        components: 1 grey, 3 colour, 4 CMYK or YCCK.
        adobe: Whether it carries Adobe's mark, whose CMYK is stored inverted.
        exif: Its EXIF.
        scans: Passes over the pixels, of every image in the file.
        metadata_bytes: Size of the segments that are left out of bare.
        bare: The file without application data and comments, except what decides its colours.
    """

    size: tuple[int, int]
    components: int
    adobe: bool
    exif: Exif
    scans: int
    metadata_bytes: int
    bare: bytes


def read_jpeg_head(content: bytes, name: str) -> JpegHead:
    """Reads the segments before the first scan.

    Raises:
        Rejected: They are damaged or cut off, or of a kind of JPEG that is not decoded here.
    """
    frame: tuple[tuple[int, int], int] | None = None
    exif_blocks: list[bytes] = []
    kept = [b"\xff\xd8"]
    adobe = False
    at = 2
    while True:
        marker, at = _marker(content, at, name)
        if marker in _STANDALONE:
            continue
        if marker == 0xD9:
            raise Rejected(Reason.TRUNCATED_IMAGE, f"{name}: the JPEG ends before its pixels")
        body = _body(content, at, name)
        segment = content[at - 2 : at + 2 + len(body)]
        if marker == 0xDA:
            break
        if marker in _OTHER_FRAMES:
            raise _unsupported(name, "a lossless or hierarchical JPEG")
        if marker in _FRAMES:
            frame = _frame(body, name)
        if marker == _APP1 and body.startswith(b"Exif\0\0"):
            exif_blocks.append(body[6:])
        adobe = adobe or (marker == _APP14 and body.startswith(b"Adobe"))
        if not (_APP0 <= marker <= _APP15 or marker == _COMMENT) or marker in (_APP0, _APP14):
            kept.append(b"\xff" + segment[1:])
        at += 2 + len(body)
    if frame is None:
        raise Rejected(Reason.CORRUPT_IMAGE, f"{name}: the JPEG does not give its size")
    kept.append(content[at - 2 :])
    bare = b"".join(kept)
    return JpegHead(
        size=frame[0],
        components=frame[1],
        adobe=adobe,
        exif=read_exif(b"".join(exif_blocks)) if exif_blocks else UPRIGHT,
        scans=content.count(_SCAN, at - 2),
        metadata_bytes=len(content) - len(bare),
        bare=bare,
    )


def _marker(content: bytes, at: int, name: str) -> tuple[int, int]:
    """The next marker and the place behind it; junk before it is skipped, as decoders do."""
    at = content.find(b"\xff", at)
    while at >= 0 and at + 1 < len(content):
        if content[at + 1] not in (0x00, 0xFF):
            return content[at + 1], at + 2
        at = content.find(b"\xff", at + 1)
    raise Rejected(Reason.TRUNCATED_IMAGE, f"{name}: the JPEG ends inside its header")


def _body(content: bytes, at: int, name: str) -> bytes:
    length = int.from_bytes(content[at : at + 2], "big")
    if at + max(2, length) > len(content):
        raise Rejected(Reason.TRUNCATED_IMAGE, f"{name}: the JPEG ends inside its header")
    if length < 2:
        raise Rejected(Reason.CORRUPT_IMAGE, f"{name}: a JPEG segment of {length} bytes")
    return content[at + 2 : at + length]


def _frame(body: bytes, name: str) -> tuple[tuple[int, int], int]:
    if len(body) < 6:
        raise Rejected(Reason.CORRUPT_IMAGE, f"{name}: the JPEG's frame is cut short")
    precision, components = body[0], body[5]
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    if precision != 8:
        raise _unsupported(name, f"a JPEG of {precision} bits")
    if components not in (1, 3, 4):
        raise _unsupported(name, f"a JPEG of {components} components")
    if not (width and height):
        raise Rejected(Reason.CORRUPT_IMAGE, f"{name}: a JPEG of {width} x {height} pixels")
    return (width, height), components


def _unsupported(name: str, what: str) -> Rejected:
    return Rejected(Reason.UNSUPPORTED_IMAGE, f"{name}: {what} is not decoded; convert it first")
