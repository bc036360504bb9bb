"""Checking and fitting images: pure functions from bytes to bytes.

An image that is a JPEG already, fits the size and needs no turning keeps its bytes: encoding it
again would cost time and quality. It is still decoded once, which is the only way to know that it
is whole.
"""

import hashlib
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from data_prep.config import ImagePolicy
from data_prep.quarantine import Reason, Rejected
from data_prep.readers.base import Corners
from data_prep.schema import ImageFacts

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are tried; Pillow knows dozens more, each one a parser of foreign bytes."""

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPED = (5, 6, 7, 8)


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image as it goes into a shard, and how it was turned to get there.

    facts.original_width and facts.original_height are those of the file, before any turning.
    """

    content: bytes
    facts: ImageFacts
    orientation: int = 1


def store_image(content: bytes, name: str, policy: ImagePolicy) -> StoredImage:
    """Checks an image file and fits it to the policy.

    Args:
        content: Bytes of the file.
        name: Its name, for the record.
        policy: Size, quality and pixel bound.

    Returns:
        A JPEG whose longer side is at most policy.max_side pixels; the given bytes if they are
        one already.

    Raises:
        Rejected: Not an image, too many pixels, truncated or corrupt.
    """
    try:
        image = Image.open(BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise Rejected(Reason.NOT_AN_IMAGE, f"{name}: none of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise Rejected(Reason.TOO_MANY_PIXELS, f"{name}: {error}") from error
    except Exception as error:
        # Parsers of damaged headers raise nearly anything; every case is recorded.
        raise _damaged(name, error) from error
    width, height = image.size
    if width * height > policy.max_pixels:
        raise Rejected(
            Reason.TOO_MANY_PIXELS,
            f"{name}: {width} x {height} pixels, more than {policy.max_pixels}",
        )
    try:
        return _fitted(image, content, name, policy)
    except Exception as error:
        # The same for damaged pixel data.
        raise _damaged(name, error) from error


def _fitted(image: Image.Image, content: bytes, name: str, policy: ImagePolicy) -> StoredImage:
    width, height = image.size
    scale = min(1.0, policy.max_side / max(width, height))
    fitted = (max(1, round(width * scale)), max(1, round(height * scale)))
    plain = image.format == "JPEG" and image.mode in ("RGB", "L") and scale == 1.0
    if scale < 1.0:
        # The decoder may halve a JPEG that is more than twice too large, for less time.
        image.draft("RGB", (2 * fitted[0], 2 * fitted[1]))
    image.load()
    orientation = _orientation(image)
    if plain and orientation == 1:
        return _stored(content, fitted, (width, height), name, orientation)
    pixels = image if image.mode == "RGB" else image.convert("RGB")
    if pixels.size != fitted:
        pixels = pixels.resize(fitted, Image.Resampling.BICUBIC)
    if orientation in _TURNS:
        pixels = pixels.transpose(_TURNS[orientation])
    sink = BytesIO()
    pixels.save(sink, "JPEG", quality=policy.quality, exif=b"", icc_profile=None)
    return _stored(sink.getvalue(), pixels.size, (width, height), name, orientation)


def _stored(
    content: bytes, size: tuple[int, int], original: tuple[int, int], name: str, orientation: int
) -> StoredImage:
    facts = ImageFacts(
        width=size[0],
        height=size[1],
        format="JPEG",
        sha256=hashlib.sha256(content).hexdigest(),
        original_width=original[0],
        original_height=original[1],
        name=name,
    )
    return StoredImage(content=content, facts=facts, orientation=orientation)


def _orientation(image: Image.Image) -> int:
    if "exif" not in image.info and image.format == "JPEG":
        return 1
    orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    return orientation if orientation in _TURNS else 1


def _damaged(name: str, error: Exception) -> Rejected:
    # Pillow tells truncation from other damage only in words.
    cut = "truncated" in str(error).lower()
    reason = Reason.TRUNCATED_IMAGE if cut else Reason.CORRUPT_IMAGE
    return Rejected(reason, f"{name}: {type(error).__name__}: {error}")


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
    if image.orientation in _SWAPPED:
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
    return (y0, x0, y1, x1) if orientation in _SWAPPED else (x0, y0, x1, y1)
