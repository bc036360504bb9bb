"""A sheet of samples to look at: images with their boxes, texts below."""

import textwrap
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from data_prep.errors import DataError
from data_prep.files import whole_file
from data_prep.schema import IMAGE_EXTENSIONS, Sample

_PAPER, _INK, _FAINT = (255, 255, 255), (30, 30, 30), (120, 120, 120)
_BOX_COLORS = ((215, 40, 40), (20, 110, 200), (20, 150, 60), (200, 120, 0), (140, 60, 180))
_CELL, _GAP, _LINE, _FONT_SIZE = 260, 14, 16, 12
_LETTERS, _LINES = 40, 8
_SHOWN_LISTED = 3


def write_contact_sheet(
    samples: Sequence[tuple[Sample, bytes]], path: Path, *, columns: int = 6
) -> None:
    """Draws samples side by side and writes them as a PNG.

    Args:
        samples: Each with the bytes of its stored image.
        path: File to write.
        columns: Cells beside each other.

    Raises:
        DataError: An image cannot be decoded, or the file cannot be written.
    """
    columns = max(1, min(columns, len(samples)))
    height = _CELL + _LINES * _LINE + _GAP
    down = max(1, -(-len(samples) // columns))
    size = (columns * (_CELL + _GAP) + _GAP, down * (height + _GAP) + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    for place, (sample, content) in enumerate(samples):
        left = _GAP + place % columns * (_CELL + _GAP)
        top = _GAP + place // columns * (height + _GAP)
        sheet.paste(_drawn(sample, content), (left, top))
        _write(sheet, sample, left, top + _CELL + _GAP // 2)
    with whole_file(path) as file:
        sheet.save(file, "PNG")


def _drawn(sample: Sample, content: bytes) -> Image.Image:
    """The image fitted into a square cell, with its boxes."""
    try:
        image = Image.open(BytesIO(content), formats=tuple(IMAGE_EXTENSIONS)).convert("RGB")
    except Exception as error:
        # Parsers of damaged images raise nearly anything.
        raise DataError(f"the image of {sample.uid!r} cannot be decoded: {error}") from error
    scale = _CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    cell = Image.new("RGB", (_CELL, _CELL), (238, 238, 238))
    left, top = (_CELL - size[0]) // 2, (_CELL - size[1]) // 2
    cell.paste(image.resize(size, Image.Resampling.BICUBIC), (left, top))
    drawing = ImageDraw.Draw(cell)
    for number, each in enumerate(sample.boxes):
        x0, y0, x1, y1 = (corner * scale for corner in each.box)
        color = _BOX_COLORS[number % len(_BOX_COLORS)]
        corners = (left + x0, top + y0, left + max(x0, x1 - 1), top + max(y0, y1 - 1))
        drawing.rectangle(corners, outline=color, width=2)
    return cell


def _write(sheet: Image.Image, sample: Sample, left: int, top: int) -> None:
    drawing = ImageDraw.Draw(sheet)
    lines: list[tuple[str, tuple[int, int, int]]] = []
    for text in sample_texts(sample):
        lines += [(line, _INK) for line in textwrap.wrap(text, _LETTERS)]
    if len(lines) > _LINES - 1:
        lines[_LINES - 2 :] = [("…", _INK)]
    lines.append((textwrap.shorten(sample.uid, _LETTERS, placeholder=" …"), _FAINT))
    for number, (line, color) in enumerate(lines):
        drawing.text((left, top + number * _LINE), line, fill=color, font=_font())


def sample_texts(sample: Sample) -> list[str]:
    """What a person reads of a sample: its task and text, then its targets."""
    found = [f"[{sample.task}] {sample.text or ''}".rstrip()]
    if sample.premise:
        found.append(f"premise: {sample.premise}")
    found += [f"- {reference}" for reference in sample.references[:_SHOWN_LISTED]]
    answers = [f"{each.text} ({each.confidence:.1f})" for each in sample.answers[:_SHOWN_LISTED]]
    if answers:
        found.append("= " + ", ".join(answers))
    labels = [each.label for each in sample.boxes if each.label]
    if labels:
        found.append("= " + ", ".join(labels))
    if sample.label:
        found.append(f"= {sample.label}")
    # A font draws a box for what it lacks, and line breaks and controls badly.
    return ["".join(c if c.isprintable() else " " for c in text) for text in found]


@cache
def _font() -> ImageFont.FreeTypeFont:
    # matplotlib's own font: it holds far more alphabets than Pillow's.
    font = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(font, _FONT_SIZE)
