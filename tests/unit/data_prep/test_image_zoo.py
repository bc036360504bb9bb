"""Malformed, hostile and merely unusual images, each with the one end that it must have."""

from __future__ import annotations

import dataclasses
import random
import time
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from data_prep.config import ImagePolicy
from data_prep.images import store_image
from data_prep.quarantine import Reason, Rejected
from tests.support.odd_images import (
    after_start,
    bmp,
    chunk,
    encoded,
    frame_changed,
    grey_tiff,
    half,
    holed,
    mpf,
    noise,
    png,
    png_with,
    segment,
    tag_bomb,
    webp_canvas,
)
from tests.support.raw_data import jpeg

POLICY = ImagePolicy(time_limit_s=10)
BLACK = Image.new("RGB", (96, 64))
RAMP = np.arange(6144).reshape(64, 96)
J, P = jpeg(1, (96, 64)), encoded(noise(), "PNG")
WHOLE = {
    "JPEG": J,
    "progressive JPEG": encoded(noise(), "JPEG", progressive=True),
    "CMYK JPEG": encoded(noise(mode="CMYK"), "JPEG"),
    "PNG": P,
    "palette PNG": encoded(noise().quantize(16), "PNG", transparency=3),
    "16-bit PNG": encoded(Image.fromarray(RAMP.astype(np.uint16)), "PNG"),
    "GIF": encoded(noise(), "GIF"),
    "animated GIF": encoded(noise(), "GIF", save_all=True, append_images=[BLACK]),
    "WebP": encoded(noise(), "WEBP"),
    "lossless WebP": encoded(noise(mode="RGBA"), "WEBP", lossless=True),
    "animated WebP": encoded(
        noise(), "WEBP", save_all=True, append_images=[Image.new("RGB", (96, 64))]
    ),
    "BMP": encoded(noise(), "BMP"),
    "TIFF": encoded(noise(), "TIFF"),
    "LZW TIFF": encoded(noise(), "TIFF", compression="tiff_lzw"),
    "JPEG TIFF": encoded(noise(), "TIFF", compression="jpeg"),
    "deflated TIFF": encoded(noise(), "TIFF", compression="tiff_adobe_deflate"),
    "float TIFF": encoded(
        Image.fromarray(np.linspace(0, 1, 6144, dtype="f4").reshape(64, 96)), "TIFF"
    ),
}

ZOO: dict[str, tuple[bytes, Reason]] = {
    "nothing": (b"", Reason.NOT_AN_IMAGE),
    "zeros": (bytes(1000), Reason.NOT_AN_IMAGE),
    "a web page": (b"<!doctype html><title>404</title>", Reason.NOT_AN_IMAGE),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", Reason.NOT_AN_IMAGE),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", Reason.NOT_AN_IMAGE),
    "pdf": (b"%PDF-1.7\n", Reason.NOT_AN_IMAGE),
    "psd": (b"8BPS\0\1" + bytes(40), Reason.NOT_AN_IMAGE),
    "another riff": (b"RIFF\x24\0\0\0WAVEfmt ", Reason.NOT_AN_IMAGE),
    "jpeg cut in its header": (J[:100], Reason.TRUNCATED_IMAGE),
    "jpeg of three bytes": (J[:3], Reason.TRUNCATED_IMAGE),
    "jpeg cut in half": (half(J), Reason.TRUNCATED_IMAGE),
    "jpeg without its last tenth": (J[: -len(J) // 10], Reason.TRUNCATED_IMAGE),
    "jpeg that ends before its pixels": (J[:2] + b"\xff\xd9" + bytes(9), Reason.TRUNCATED_IMAGE),
    "progressive jpeg cut in half": (half(WHOLE["progressive JPEG"]), Reason.TRUNCATED_IMAGE),
    "jpeg without a size": (frame_changed(J, 0, b"\xff\xfe"), Reason.CORRUPT_IMAGE),
    "jpeg of no height": (frame_changed(J, 5, b"\0\0"), Reason.CORRUPT_IMAGE),
    "jpeg of 65500 x 65500": (frame_changed(J, 5, b"\xff\xdc\xff\xdc"), Reason.TOO_MANY_PIXELS),
    "jpeg of 12 bits": (frame_changed(J, 4, b"\x0c"), Reason.UNSUPPORTED_IMAGE),
    "jpeg of 2 components": (frame_changed(J, 9, b"\2"), Reason.UNSUPPORTED_IMAGE),
    "lossless jpeg": (frame_changed(J, 1, b"\xc3"), Reason.UNSUPPORTED_IMAGE),
    "jpeg with a segment of length 1": (J[:2] + b"\xff\xe5\0\1" + J[2:], Reason.CORRUPT_IMAGE),
    "jpeg without quantization": (J.replace(b"\xff\xdb", b"\xff\xfe"), Reason.CORRUPT_IMAGE),
    "png cut in its header": (P[:20], Reason.TRUNCATED_IMAGE),
    "png without pixels": (png(100, 100), Reason.TRUNCATED_IMAGE),
    "png cut in half": (half(P), Reason.TRUNCATED_IMAGE),
    "png with a hole": (holed(P, len(P) // 2), Reason.CORRUPT_IMAGE),
    "png of 50000 x 50000": (png(50_000, 50_000), Reason.TOO_MANY_PIXELS),
    "png of 2 billion x 2 billion": (png(2**31 - 1, 2**31 - 1), Reason.TOO_MANY_PIXELS),
    "png just above the bound": (png(8_001, 8_000), Reason.TOO_MANY_PIXELS),
    "png of an unknown colour type": (png(10, 10, colour=5), Reason.CORRUPT_IMAGE),
    "png with a wrong checksum": (
        png_with(chunk(b"tEXt", b"a\0b")[:-4] + bytes(4)),
        Reason.CORRUPT_IMAGE,
    ),
    "png with 100 MB of zTXt": (
        png_with(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000)))),
        Reason.CORRUPT_IMAGE,
    ),
    "png with 100 MB of iTXt": (
        png_with(chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(100_000_000)))),
        Reason.CORRUPT_IMAGE,
    ),
    "png with a thousand texts of 1 MB": (
        png_with(*[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000)))] * 1000),
        Reason.CORRUPT_IMAGE,
    ),
    "png of 64 million pixels of nothing": (png(8_000, 8_000), Reason.TRUNCATED_IMAGE),
    "gif cut in its header": (WHOLE["GIF"][:9], Reason.CORRUPT_IMAGE),
    "gif cut in half": (half(WHOLE["GIF"]), Reason.TRUNCATED_IMAGE),
    "gif without a picture": (WHOLE["GIF"][:781] + b";", Reason.CORRUPT_IMAGE),
    "gif of 65535 x 65535": (
        b"GIF89a" + b"\xff" * 4 + bytes(3) + b"," + bytes(4) + b"\xff" * 4 + bytes(9),
        Reason.TOO_MANY_PIXELS,
    ),
    "webp cut in its header": (WHOLE["WebP"][:18], Reason.TRUNCATED_IMAGE),
    "webp cut in half": (half(WHOLE["WebP"]), Reason.CORRUPT_IMAGE),
    "webp of 16 million x 16 million": (webp_canvas(2**24, 2**24), Reason.TOO_MANY_PIXELS),
    "webp without a picture": (webp_canvas(10, 10), Reason.CORRUPT_IMAGE),
    "bmp of 2 billion x 1": (bmp(2**31 - 1, 1), Reason.TOO_MANY_PIXELS),
    "bmp without its pixels": (bmp(100, 100), Reason.TRUNCATED_IMAGE),
    "bmp of 7 bits": (bmp(10, 10, bits=7), Reason.CORRUPT_IMAGE),
    "tiff without a directory": (b"II*\0\xff\xff\0\0", Reason.CORRUPT_IMAGE),
    "tiff of 4 billion x 4 billion": (grey_tiff(2**32 - 1, 2**32 - 1), Reason.TOO_MANY_PIXELS),
    "tiff without its pixels": (grey_tiff(100, 100), Reason.TRUNCATED_IMAGE),
    "tiff of negative numbers": (
        encoded(Image.fromarray(np.full((9, 9), -1, "f4")), "TIFF"),
        Reason.UNSUPPORTED_IMAGE,
    ),
    "tiff of no numbers": (
        encoded(Image.fromarray(np.full((9, 9), np.nan, "f4")), "TIFF"),
        Reason.UNSUPPORTED_IMAGE,
    ),
    "tiff of lab colours": (encoded(noise(mode="LAB"), "TIFF"), Reason.UNSUPPORTED_IMAGE),
    "tiff with a hole in its codes": (
        holed(WHOLE["deflated TIFF"], len(WHOLE["deflated TIFF"]) // 2),
        Reason.CORRUPT_IMAGE,
    ),
}


@pytest.mark.parametrize("name", ZOO)
def test_each_bad_image_has_its_reason(name: str) -> None:
    content, reason = ZOO[name]
    began = time.monotonic()
    with pytest.raises(Rejected) as caught:
        store_image(content, "bad.jpg", POLICY)
    assert caught.value.reason == reason, caught.value.detail
    assert caught.value.detail.startswith("bad.jpg: ")
    assert time.monotonic() - began < 30


HARMLESS: dict[str, bytes] = {
    "jpeg with junk behind its end": J + bytes(1000),
    "jpeg with fill bytes between segments": J[:2] + b"\xff\xff\xff" + J[2:],
    "jpeg with 4000 exif entries of 12 kB": after_start(J, segment(0xE1, tag_bomb())),
    "jpeg with 20 MB of exif": after_start(J, *[segment(0xE1, b"Exif\0\0" + bytes(65_000))] * 300),
    "jpeg with exif that points at itself": after_start(
        J, segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\x08\0\0\0")
    ),
    "jpeg with damaged photoshop data": after_start(
        J, segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed")
    ),
    "jpeg with a damaged profile": after_start(J, segment(0xE2, b"ICC_PROFILE\0\1\1junk")),
    "jpeg of two pictures": mpf(J),
    "tiff with a tag of 4 GB": grey_tiff(10, 10, (315, 2, 2**32 - 1, 8)),
    "png with a damaged profile": png_with(chunk(b"iCCP", b"a\0\0junk")),
    "gif with junk behind its end": WHOLE["GIF"] + bytes(100),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_harms_nobody_is_stored_for_training_to_read(name: str) -> None:
    result = store_image(HARMLESS[name], "odd.jpg", POLICY)
    with Image.open(BytesIO(result.content)) as image:
        image.load()
        assert image.size == (result.facts.width, result.facts.height)
        # Metadata that costs its reader gigabytes is not handed on.
        assert len(image.info.get("exif", b"")) < 1_000


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("store", ["fit", "keep"])
def test_damaged_bytes_end_in_a_result_or_a_rejection(name: str, store: str) -> None:
    content, policy = WHOLE[name], dataclasses.replace(POLICY, store=store, max_side=50)
    assert store_image(content, name, policy).facts.original_width == 96
    rng = random.Random(f"{name} {store}")
    rejected = 0
    for damage in (_flipped, _cut, _overwritten, _doubled):
        for _ in range(12):
            try:
                result = store_image(damage(content, rng), name, policy)
            except Rejected:
                rejected += 1
            else:
                Image.open(BytesIO(result.content)).load()
    # Damage was done; not all of it is fatal, since a flipped bit can be just another pixel.
    assert rejected > 12


def _flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 3, 30))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _overwritten(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(min(len(content), 200))
    return content[:start] + rng.randbytes(rng.randrange(1, 20)) + content[start + 8 :]


def _doubled(content: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(content)) for _ in range(2))
    return content[:end] + content[start:]
