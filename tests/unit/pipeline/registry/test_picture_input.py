"""Images arrive in several forms and give the same pixels; what is no image is refused by name."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import DataError
from pipeline.registry.picture_input import open_image


def picture() -> Image.Image:
    image = Image.new("RGB", (40, 30), "white")
    image.putpixel((3, 4), (250, 10, 20))
    return image


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
"""A format that Pillow reads by starting a program."""


def content(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def test_all_forms_give_the_same_pixels(tmp_path: Path) -> None:
    data = content(picture())
    path = tmp_path / "x.png"
    path.write_bytes(data)
    text = base64.b64encode(data).decode()
    wrapped = "\n".join(text[i : i + 60] for i in range(0, len(text), 60))
    forms = [str(path), path, data, text, wrapped, f"data:image/png;base64,{text}", picture()]
    for form in forms:
        opened = open_image(form)
        assert opened.mode == "RGB"
        assert opened.tobytes() == picture().tobytes()


def test_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (30, 40)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("missing.jpg", "missing.jpg does not exist"),
        (b"not an image", "no readable image"),
        (content(picture())[:60], "no readable image"),
        ("ftp://example.org/a.jpg", "only http and https"),
        (EPS, "no readable image"),
        ("data:image/png,abc", "must be base64"),
        ("!" * 100, "neither a file nor base64"),
    ],
)
def test_what_is_no_image(form: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_image(form)


def test_huge_images_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.registry.picture_input.MAX_PIXELS", 1_000)
    with pytest.raises(DataError, match="40 x 30 pixels"):
        open_image(content(picture()))
