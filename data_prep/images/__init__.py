"""Checking, keeping and fitting images: from bytes to bytes, and boxes that follow.

Ordinary JPEGs are decoded where the work is. Their decoding takes a time that their header tells,
and no process in between makes it as fast as it can be. Everything else goes through a helper
process that ends when an image takes too long: other formats, whose cost no header tells, and
JPEGs of very many scans.
"""

from data_prep.config import ImagePolicy
from data_prep.images.boxes import stored_box
from data_prep.images.decode import check_pixels, decode_jpeg
from data_prep.images.isolation import ISOLATION
from data_prep.images.jpeg_head import MAGIC, read_jpeg_head
from data_prep.images.stored import StoredImage
from data_prep.quarantine import Reason, Rejected

__all__ = ["FORMATS", "StoredImage", "store_image", "stored_box"]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are tried; Pillow knows dozens more, each one a parser of foreign bytes."""

_STARTS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
_BOUNDED_WORK = 250_000_000
"""Pixels times scans of a JPEG that is decoded in this process: at most about two seconds."""


def store_image(content: bytes, name: str, policy: ImagePolicy) -> StoredImage:
    """Checks an image file and stores it as the policy says.

    Args:
        content: Bytes of the file.
        name: Its name, for the record.
        policy: What is stored, and the bounds.

    Returns:
        The given bytes where the policy leaves them as they are, or a JPEG.

    Raises:
        Rejected: Not an image, too many pixels, too much work, truncated, corrupt, or of a kind
            that is not decoded.
    """
    if not content.startswith(MAGIC):
        return ISOLATION.store(content, _other_format(content, name), name, policy)
    head = read_jpeg_head(content, name)
    check_pixels(head.size, name, policy)
    if head.size[0] * head.size[1] * head.scans > _BOUNDED_WORK:
        return ISOLATION.store(content, "JPEG", name, policy)
    return decode_jpeg(content, head, name, policy)


def _other_format(content: bytes, name: str) -> str:
    for start, kind in _STARTS.items():
        if content.startswith(start):
            return kind
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "WEBP"
    raise Rejected(Reason.NOT_AN_IMAGE, f"{name}: none of {', '.join(FORMATS)}")
