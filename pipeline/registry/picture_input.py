"""Images as people and services send them: a path, URL, bytes, base64, a Pillow image."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import DataError
from pipeline.registry.picture_fetch import fetch, read_bounded
from pipeline.registry.picture_sources import ImageSources

ImageInput = str | Path | bytes | Image.Image
MAX_PIXELS = 50_000_000
"""Larger images are refused before they are decoded."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded, as in data preparation; some of Pillow's other formats start programs."""
_LONGEST_PATH = 4_096


def open_image(image: ImageInput) -> Image.Image:
    """Reads an image as RGB, turned as its EXIF orientation says.

    Args:
        image: A file's path, its URL or a `data:` URL, its bytes, base64 text, or an image.

    Raises:
        DataError: there is no such file, its place is not allowed (see picture_sources), or it is
            no whole image of a sensible size.
    """
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image).convert("RGB")
    content, name = _content(image)
    try:
        with warnings.catch_warnings():
            # Pillow's own warning comes at a size that the check below refuses by name.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(content), formats=FORMATS)
        if opened.width * opened.height > MAX_PIXELS:
            raise DataError(f"{name} has {opened.width} x {opened.height} pixels: too many")
        opened.load()
        return ImageOps.exif_transpose(opened).convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise DataError(f"{name} is no readable image: {error}") from error


def _content(image: str | Path | bytes) -> tuple[bytes, str]:
    if isinstance(image, bytes):
        return image, "the image"
    text = str(image)
    if text.startswith("data:"):
        head, _, body = text.partition(",")
        if not head.endswith(";base64"):
            raise DataError("a data URL of an image must be base64")
        return _decode(body, "the data URL"), "the data URL's image"
    sources = ImageSources.from_environment()
    if isinstance(image, str) and "://" in text[:32]:
        return fetch(text, sources), f"{text:.200}"
    if len(text) <= _LONGEST_PATH and sources.paths and _is_file(text):
        return read_bounded(Path(text)), text
    # A path has a dot or is short; an image of any use is longer than that in base64.
    if isinstance(image, Path) or "." in text or len(text) < 64:
        if not sources.paths:
            raise DataError(f"image {text:.200}: {sources.refusal('path')}")
        raise DataError(f"image {text:.200} does not exist")
    return _decode(text, "the image"), "the base64 image"


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # no path: too long a name, or a NUL in it
        return False


def _decode(text: str, name: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{name} is neither a file nor base64: {error}") from error
