"""Images: kept, fitted or rejected, and boxes that follow them."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from data_prep.config import ImagePolicy
from data_prep.images import StoredImage, store_image, stored_box
from data_prep.quarantine import Reason, Rejected
from data_prep.schema import ImageFacts
from tests.support.raw_data import jpeg

POLICY = ImagePolicy()


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def opened(stored: StoredImage) -> Image.Image:
    return Image.open(BytesIO(stored.content))


def test_a_fitting_jpeg_keeps_its_bytes() -> None:
    content = jpeg(1)
    stored = store_image(content, "a.jpg", POLICY)
    assert stored.content is content
    assert (stored.facts.width, stored.facts.height) == (48, 32)


def test_a_grey_jpeg_keeps_its_bytes() -> None:
    content = encoded(Image.new("L", (9, 9), 100), "JPEG")
    assert store_image(content, "a.jpg", POLICY).content == content


@pytest.mark.parametrize(
    ("size", "fitted"),
    [((640, 480), (512, 384)), ((480, 2000), (123, 512)), ((5000, 1), (512, 1))],
)
def test_larger_images_are_fitted(size: tuple[int, int], fitted: tuple[int, int]) -> None:
    stored = store_image(encoded(Image.new("RGB", size, (9, 99, 199)), "JPEG"), "a.jpg", POLICY)
    assert opened(stored).size == fitted == (stored.facts.width, stored.facts.height)
    assert (stored.facts.original_width, stored.facts.original_height) == size
    colour = opened(stored).getpixel((0, 0))
    assert isinstance(colour, tuple)
    assert all(abs(a - b) <= 3 for a, b in zip(colour, (9, 99, 199), strict=True))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats_become_jpeg(kind: str) -> None:
    content = encoded(Image.new("RGB", (20, 10), (200, 100, 50)), kind)
    stored = store_image(content, "a", POLICY)
    assert opened(stored).format == stored.facts.format == "JPEG"
    assert opened(stored).size == (20, 10)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "CMYK", "I;16"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = Image.new(mode, (20, 10))
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert opened(store_image(encoded(image, kind), "a", POLICY)).mode == "RGB"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "max_side"), [("JPEG", 512), ("PNG", 512), ("JPEG", 60)])
def test_boxes_turn_with_the_image(orientation: int, kind: str, max_side: int) -> None:
    image = Image.new("RGB", (120, 80))
    # A white box at a place where no turn maps it onto itself.
    ImageDraw.Draw(image).rectangle((16, 8, 47, 23), fill=(255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = store_image(
        encoded(image, kind, exif=exif), "a", ImagePolicy(max_side=max_side, quality=100)
    )
    picture = opened(stored)
    assert picture.getexif().get(0x0112, 1) == 1
    upright = (120, 80) if orientation < 5 else (80, 120)
    scale = min(1.0, max_side / 120)
    assert picture.size == (round(upright[0] * scale), round(upright[1] * scale))
    found = picture.convert("L").point(lambda value: 255 * (value > 127)).getbbox()
    assert found is not None
    box = stored_box((16, 8, 48, 24), stored)
    assert all(abs(a - b) <= 1 for a, b in zip(found, box, strict=True))


def test_a_kept_image_keeps_boxes_exactly() -> None:
    stored = store_image(jpeg(1), "a.jpg", POLICY)
    assert stored_box((0.1, 0.2, 3.3, 4.7), stored) == (0.1, 0.2, 3.3, 4.7)
    assert stored_box((-5, -5, 99, 99), stored) == (0, 0, 48, 32)
    with pytest.raises(Rejected) as caught:
        stored_box((48, 0, 60, 10), stored)
    assert caught.value.reason == Reason.BAD_BOX


@given(
    original=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    box=st.tuples(*[st.floats(-10, 5010, allow_nan=False)] * 4),
    orientation=st.integers(1, 8),
    max_side=st.integers(1, 600),
)
def test_a_stored_box_never_leaves_the_image(
    original: tuple[int, int],
    box: tuple[float, float, float, float],
    orientation: int,
    max_side: int,
) -> None:
    scale = min(1.0, max_side / max(original))
    size = [max(1, round(side * scale)) for side in original]
    width, height = size if orientation < 5 else size[::-1]
    facts = ImageFacts(
        width=width,
        height=height,
        format="JPEG",
        sha256="",
        original_width=original[0],
        original_height=original[1],
        name="",
    )
    stored = StoredImage(content=b"", facts=facts, orientation=orientation)
    try:
        x0, y0, x1, y1 = stored_box(box, stored)
    except Rejected:
        return
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises more than it holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))


def _damaged_png() -> bytes:
    content = bytearray(encoded(Image.new("RGB", (64, 64), (1, 2, 3)), "PNG"))
    content[60:70] = bytes(10)
    return bytes(content)


BAD: dict[str, tuple[bytes, Reason]] = {
    "empty": (b"", Reason.NOT_AN_IMAGE),
    "text": (b"<html>404</html>", Reason.NOT_AN_IMAGE),
    "jpeg cut in the header": (jpeg(1)[:100], Reason.TRUNCATED_IMAGE),
    "jpeg cut in half": (jpeg(1)[: len(jpeg(1)) // 2 + 300], Reason.TRUNCATED_IMAGE),
    "jpeg without its last tenth": (jpeg(1, (200, 200))[:-2000], Reason.TRUNCATED_IMAGE),
    "png bomb": (png_header(50_000, 50_000), Reason.TOO_MANY_PIXELS),
    "png above the bound": (png_header(8_001, 8_000), Reason.TOO_MANY_PIXELS),
    "png without pixels": (png_header(100, 100), Reason.TRUNCATED_IMAGE),
    "damaged png": (_damaged_png(), Reason.CORRUPT_IMAGE),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", Reason.NOT_AN_IMAGE),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", Reason.NOT_AN_IMAGE),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_rejected_with_their_reason(name: str) -> None:
    content, reason = BAD[name]
    with pytest.raises(Rejected) as caught:
        store_image(content, "bad.jpg", POLICY)
    assert caught.value.reason == reason, caught.value.detail
    assert caught.value.detail.startswith("bad.jpg: ")
