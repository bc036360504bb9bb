"""Draws one answer onto its image, to look at."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from pipeline.registry.picture_input import ImageInput, open_image
from pipeline.tasks.base import Prediction

_COLOR = (220, 40, 40)
_MARGIN = 4


def annotate(image: ImageInput, answer: Prediction, text: str | None = None) -> Image.Image:
    """Draws the box, and below the image the text asked and the text answered.

    Args:
        image: The image that was asked about.
        answer: What came back; its box is in pixels of the image.
        text: The text that was asked.

    Raises:
        DataError: the image cannot be read.
    """
    picture = open_image(image)
    lines = [line for line in (text, answer.text) if line]
    font = ImageFont.load_default(size=max(11, picture.width // 28))
    height = sum(int(font.getbbox(line)[3]) + _MARGIN for line in lines)
    sheet = Image.new("RGB", (picture.width, picture.height + height + _MARGIN), "white")
    sheet.paste(picture, (0, 0))
    drawing = ImageDraw.Draw(sheet)
    if answer.box is not None:
        drawing.rectangle(tuple(answer.box), outline=_COLOR, width=max(2, picture.width // 160))
    top = picture.height + _MARGIN // 2
    for line in lines:
        drawing.text((_MARGIN, top), line, fill="black" if line == text else _COLOR, font=font)
        top += int(font.getbbox(line)[3]) + _MARGIN
    return sheet
