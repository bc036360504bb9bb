"""Images: kept, fitted or rejected, and boxes that follow them."""

from __future__ import annotations

import hashlib
import struct
from io import BytesIO
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from data_prep.config import ImagePolicy
from data_prep.images import StoredImage, store_image, stored_box
from data_prep.images.isolation import ISOLATION
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
@pytest.mark.parametrize(
    ("kind", "max_side"),
    [("JPEG", 512), ("PNG", 512), ("WEBP", 512), ("TIFF", 512), ("JPEG", 60), ("TIFF", 60)],
)
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


def test_compressed_tiffs_and_late_exif_are_turned_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    image = Image.new("RGB", (120, 80))
    contents = [
        encoded(image, "TIFF", exif=exif, compression=compression)
        for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")
    ]
    early = encoded(image, "PNG", exif=exif)
    start = early.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(early[start : start + 4], "big")
    contents.append(early[:start] + early[end:-12] + early[start:end] + early[-12:])
    text = PngInfo()
    profile = exif.tobytes().hex()
    text.add_text("Raw profile type exif", f"\nexif\n{len(profile) // 2}\n{profile}\n")
    contents.append(encoded(image, "PNG", pnginfo=text))
    for content in contents:
        stored = store_image(content, "a", POLICY)
        assert opened(stored).size == (80, 120)
        assert (stored.facts.original_width, stored.orientation) == (120, 8)
        assert stored_box((0, 0, 30, 80), stored) == (0, 90, 80, 120)


def pixel(stored: StoredImage, place: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    colour = opened(stored).getpixel(place)
    assert isinstance(colour, tuple)
    return colour


def near(found: tuple[int, ...], wanted: tuple[int, ...], by: int = 3) -> bool:
    return all(abs(a - b) <= by for a, b in zip(found, wanted, strict=True))


def deep(values: list[int] | list[float], kind: str) -> Image.Image:
    """A grey image of four columns."""
    return Image.fromarray(np.tile(np.repeat(np.array(values, kind), 16), (32, 1)))


@pytest.mark.parametrize(
    ("kind", "values", "wanted"),
    [
        ("uint16", [0, 65_535, 32_768, 257], (0, 255, 128, 1)),
        ("float32", [0, 1, 0.5, 0.25], (0, 255, 128, 64)),
        ("float32", [0, 255, 100, 50], (0, 255, 100, 50)),
        ("float32", [0, 40_000, 20_000, 10_000], (0, 156, 78, 39)),
        ("int32", [0, 65_535, 32_768, 257], (0, 255, 128, 1)),
        ("int32", [0, 200, 100, 50], (0, 200, 100, 50)),
    ],
)
def test_deep_pixels_are_scaled_and_not_clipped(
    kind: str, values: list[int] | list[float], wanted: tuple[int, ...]
) -> None:
    image = deep(values, kind)
    for container in ["TIFF", "PNG"] if kind == "uint16" else ["TIFF"]:
        stored = store_image(encoded(image, container), "a", POLICY)
        for column, grey in enumerate(wanted):
            assert near(pixel(stored, (16 * column + 8, 16)), (grey,) * 3), container


def test_big_endian_16_bit_tiffs_are_scaled() -> None:
    image = Image.frombytes("I;16B", (16, 16), struct.pack(">256H", *[32_768] * 256))
    assert near(pixel(store_image(encoded(image, "TIFF"), "a", POLICY)), (128,) * 3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("alpha", "wanted"),
    [(0, (255,) * 3), (255, (200, 0, 0)), (128, (227, 127, 127))],
)
def test_transparent_pixels_lie_over_white(
    kind: str, alpha: int, wanted: tuple[int, int, int]
) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    content = encoded(Image.new("RGBA", (32, 32), (200, 0, 0, alpha)), kind, **options)
    assert near(pixel(store_image(content, "a", POLICY), (16, 16)), wanted)


def test_transparent_entries_of_a_palette_lie_over_white() -> None:
    image = Image.new("P", (32, 32), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    for kind in ("PNG", "GIF"):
        content = encoded(image, kind, transparency=1)
        assert near(pixel(store_image(content, "a", POLICY), (16, 16)), (255,) * 3)
        assert near(pixel(store_image(encoded(image, kind), "a", POLICY), (16, 16)), (200, 0, 0))


def test_cmyk_is_read_with_and_without_adobes_mark() -> None:
    # Cyan without the other inks.
    content = encoded(Image.new("CMYK", (32, 32), (255, 0, 0, 0)), "JPEG", quality=95)
    assert near(pixel(store_image(content, "a", POLICY)), (0, 255, 255))
    start = content.index(b"\xff\xee")
    length = int.from_bytes(content[start + 2 : start + 4], "big") + 2
    # Without the mark the same bytes mean the inverse.
    plain = content[:start] + content[start + length :]
    assert near(pixel(store_image(plain, "a", POLICY)), (0, 0, 0))
    tiff = encoded(Image.new("CMYK", (32, 32), (255, 0, 0, 0)), "TIFF")
    assert near(pixel(store_image(tiff, "a", POLICY)), (0, 255, 255))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_picture_of_several_is_stored(kind: str) -> None:
    first, second = (Image.new("RGB", (32, 32), colour) for colour in ((200, 0, 0), (0, 0, 200)))
    content = encoded(first, kind, save_all=True, append_images=[second])
    for store in ("fit", "keep"):
        stored = store_image(content, "a", ImagePolicy(store=store))
        assert near(pixel(stored), (200, 0, 0), by=9)
        assert stored.facts.format == "JPEG"


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.new("RGB", (700, 600)), "JPEG"),
        (Image.new("L", (700, 600)), "JPEG"),
        (Image.new("RGB", (700, 600)), "PNG"),
        (Image.new("P", (700, 600)), "PNG"),
        (Image.new("RGB", (700, 600)), "WEBP"),
    ],
)
def test_keep_keeps_bytes_of_any_size(image: Image.Image, kind: str) -> None:
    content = encoded(image, kind)
    stored = store_image(content, "a", ImagePolicy(store="keep", max_side=100))
    assert stored.content is content
    assert (stored.facts.format, stored.facts.width, stored.facts.height) == (kind, 700, 600)
    assert stored.facts.sha256 == hashlib.sha256(content).hexdigest()
    assert stored_box((0.1, 0.2, 650.3, 4.7), stored) == (0.1, 0.2, 650.3, 4.7)


def turned(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.new("RGB", (700, 600)), kind, exif=exif)


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (turned("JPEG"), (600, 700)),
        (turned("PNG"), (600, 700)),
        (turned("TIFF"), (600, 700)),
        (encoded(Image.new("RGBA", (700, 600)), "PNG"), (700, 600)),
        (encoded(Image.new("I;16", (700, 600)), "PNG"), (700, 600)),
        (encoded(Image.new("RGB", (700, 600)), "BMP"), (700, 600)),
        (encoded(Image.new("CMYK", (700, 600)), "JPEG"), (700, 600)),
    ],
)
def test_keep_encodes_what_training_would_see_otherwise(
    content: bytes, size: tuple[int, int]
) -> None:
    stored = store_image(content, "a", ImagePolicy(store="keep", max_side=100))
    assert stored.facts.format == opened(stored).format == "JPEG"
    assert opened(stored).size == size == (stored.facts.width, stored.facts.height)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_small_images_grow_only_on_request(kind: str) -> None:
    content = encoded(Image.new("RGB", (100, 50), (9, 99, 199)), kind)
    assert opened(store_image(content, "a", POLICY)).size == (100, 50)
    grown = store_image(content, "a", ImagePolicy(upscale=True))
    assert opened(grown).size == (512, 256)
    assert near(pixel(grown, (256, 128)), (9, 99, 199))
    assert stored_box((0, 0, 50, 50), grown) == (0, 0, 256, 256)


@pytest.mark.parametrize(("resample", "filter_of_pillow"), [("bicubic", 3), ("lanczos", 1)])
@pytest.mark.parametrize("size", [(640, 480), (1200, 700), (4000, 3000)])
def test_fitted_pixels_are_those_of_pillows_filter(
    resample: Literal["bicubic", "lanczos"], filter_of_pillow: int, size: tuple[int, int]
) -> None:
    # Detail of every size, the finest of which must not come through as something else.
    pattern = Image.effect_noise((size[0] // 4, size[1] // 4), 60).resize(size)
    image = pattern.convert("RGB")
    fitted = opened(
        store_image(encoded(image, "PNG"), "a", ImagePolicy(resample=resample, quality=100))
    )
    wanted = image.resize(fitted.size, Image.Resampling(filter_of_pillow))
    difference = np.asarray(fitted, float) - np.asarray(wanted, float)
    psnr = 10 * np.log10(255**2 / np.mean(difference**2))
    assert psnr > 35, psnr


def test_the_same_image_gives_the_same_bytes_here_and_in_the_helper() -> None:
    content = jpeg(1, (900, 700))
    here = store_image(content, "a", POLICY)
    assert ISOLATION.store(content, "JPEG", "a", POLICY) == here
    assert store_image(content, "a", POLICY) == here
