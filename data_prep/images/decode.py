"""Images of each format to what is stored of them; runs wherever it is called.

A file keeps its bytes where the policy's size asks for no change and training would see the very
pixels that this module sees: upright, 8 bits, opaque, one picture. It is decoded once in any case,
which is the only way to know that it is whole.
"""

import struct
import warnings
from io import BytesIO

from PIL import Image, ImageChops, UnidentifiedImageError

from data_prep.config import ImagePolicy
from data_prep.images.exif import UPRIGHT, Exif, read_exif
from data_prep.images.fit import draft, encode_fitted, fitted_size
from data_prep.images.jpeg_head import JpegHead, read_jpeg_head
from data_prep.images.stored import TURNS, StoredImage, stored
from data_prep.quarantine import Reason, Rejected

_ORIENTATION_TAG = 0x0112
_OPPOSITE = {6: 8, 8: 6}
"""Orientations whose turn another one undoes; all others undo themselves."""
_KEPT_FORMATS = ("PNG", "WEBP")
"""Formats besides JPEG whose bytes may go into a shard as they are."""
_METADATA_BYTES = 2**20
"""Metadata of a JPEG that keeps its bytes; readers copy it about, some again and again."""


def decode_jpeg(content: bytes, head: JpegHead, name: str, policy: ImagePolicy) -> StoredImage:
    """Stores a JPEG whose head was read and found small enough.

    Raises:
        Rejected: It is truncated or corrupt.
    """
    fitted = fitted_size(head.size, policy)
    try:
        if fitted == head.size and _keeps_jpeg(head):
            image = _opened_whole(content)
            if image is not None:
                image.load()
                return stored(content, "JPEG", fitted, head.size, name, 1)
        image = Image.open(BytesIO(head.bare), formats=("JPEG",))
        draft(image, fitted)
        image.load()
        if image.mode == "CMYK" and not head.adobe:
            # The decoder takes all CMYK for Adobe's, which is inverted.
            image = ImageChops.invert(image)
        return encode_fitted(image, head.size, head.exif.orientation, name, policy)
    except Rejected:
        raise
    except Exception as error:
        # Decoders of damaged files raise nearly anything; every case is recorded.
        raise damaged(name, error) from error


def _keeps_jpeg(head: JpegHead) -> bool:
    return head.exif == UPRIGHT and head.metadata_bytes <= _METADATA_BYTES and head.components != 4


def _opened_whole(content: bytes) -> Image.Image | None:
    """A JPEG opened with all of its metadata, as training does; None where that is damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return Image.open(BytesIO(content), formats=("JPEG",))
    except (UnidentifiedImageError, OSError, ValueError, Warning):
        return None


def decode_other(content: bytes, kind: str, name: str, policy: ImagePolicy) -> StoredImage:
    """Stores an image of another format; of an animation, its first picture.

    Raises:
        Rejected: Too many pixels, truncated, corrupt, or pixels that are no colours.
    """
    try:
        if kind == "WEBP":
            # Its plugin makes room for the whole canvas before it tells the size.
            check_pixels(_webp_size(content), name, policy)
        image = Image.open(BytesIO(content), formats=(kind,))
        check_pixels(image.size, name, policy)
        if kind == "TIFF":
            return _tiff(image, name, policy)
        several = getattr(image, "n_frames", 1) > 1
        original = image.size
        image.load()
        # Some PNGs have their EXIF behind the pixels.
        exif = _exif(image)
        if policy.store == "keep" and not several and exif == UPRIGHT and _seen_alike(image):
            return stored(content, kind, original, original, name, 1)
        return encode_fitted(image, original, exif.orientation, name, policy)
    except Rejected:
        raise
    except Image.DecompressionBombError as error:
        raise Rejected(Reason.TOO_MANY_PIXELS, f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise Rejected(
            Reason.CORRUPT_IMAGE, f"{name}: the header of a {kind} is damaged"
        ) from error
    except Exception as error:
        # Decoders of damaged files raise nearly anything; every case is recorded.
        raise damaged(name, error) from error


def check_pixels(size: tuple[int, int], name: str, policy: ImagePolicy) -> None:
    """Raises Rejected when a header promises more pixels than the policy allows."""
    if size[0] * size[1] > policy.max_pixels:
        raise Rejected(
            Reason.TOO_MANY_PIXELS,
            f"{name}: {size[0]} x {size[1]} pixels, more than {policy.max_pixels}",
        )


def store_here(content: bytes, kind: str, name: str, policy: ImagePolicy) -> StoredImage:
    """Stores an image of a known format in this process, however long it takes."""
    if kind == "JPEG":
        return decode_jpeg(content, read_jpeg_head(content, name), name, policy)
    return decode_other(content, kind, name, policy)


def _tiff(image: Image.Image, name: str, policy: ImagePolicy) -> StoredImage:
    """Stores a TIFF, which Pillow turns upright when it decodes it, unlike all other formats."""
    orientation = getattr(image, "tag_v2", {}).get(_ORIENTATION_TAG, 1)
    image.load()
    if orientation not in TURNS:
        return encode_fitted(image, image.size, 1, name, policy)
    # Turned back, so that one way serves all formats; such files are rare.
    as_filed = image.transpose(TURNS[_OPPOSITE.get(orientation, orientation)])
    return encode_fitted(as_filed, as_filed.size, orientation, name, policy)


def _exif(image: Image.Image) -> Exif:
    block, text = image.info.get("exif"), image.info.get("Raw profile type exif")
    if block is None and isinstance(text, str):
        # ImageMagick's way: a name, a length, and hexadecimal digits, in three or more lines.
        try:
            block = bytes.fromhex("".join(text.split("\n")[3:]))
        except ValueError:
            return UPRIGHT
    return read_exif(block) if isinstance(block, bytes) else UPRIGHT


def _seen_alike(image: Image.Image) -> bool:
    """Whether training, which converts to RGB and nothing else, sees what is seen here."""
    return (
        image.format in _KEPT_FORMATS
        and image.mode in ("RGB", "L", "P", "1")
        and not image.has_transparency_data
    )


def _webp_size(content: bytes) -> tuple[int, int]:
    """Width and height of a WebP's canvas.

    Source: RFC 9649, sections 2.5 to 2.7.
    """
    kind, data = content[12:16], content[20:30]
    if len(data) < 10:
        raise EOFError("Truncated WebP header")
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[4:7], "little"), 1 + int.from_bytes(data[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 6)
    return width & 0x3FFF, height & 0x3FFF


def damaged(name: str, error: Exception) -> Rejected:
    """The rejection of a file that a decoder gave up on."""
    # Pillow tells truncation from other damage only in words.
    cut = "truncated" in str(error).lower()
    reason = Reason.TRUNCATED_IMAGE if cut else Reason.CORRUPT_IMAGE
    return Rejected(reason, f"{name}: {type(error).__name__}: {error}")
