"""A sheet of predictions to look at: true boxes green, predicted boxes red, texts below."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from pipeline.evaluation.report import PredictionRow

TRUE_COLOR = (20, 150, 60)
PREDICTED_COLOR = (215, 40, 40)
_PAPER = (255, 255, 255)
_INK = (40, 40, 40)
_CELL = 260
_GAP = 14
_FONT_SIZE = 13
_LINE = 17
_LETTERS_PER_LINE = 38
_LINES = 7

Line = tuple[str, tuple[int, int, int]]


def picture_sheet(
    rows: Sequence[PredictionRow], images: Sequence[Image.Image], *, columns: int = 4
) -> Image.Image:
    """Draws predictions onto their images, one cell each.

    Args:
        rows: What to draw.
        images: The stored image of each row; boxes are in its pixels.
        columns: Cells beside each other.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not rows:
        raise ValueError("no predictions to draw")
    columns = min(columns, len(rows))
    height = _CELL + _LINES * _LINE + _GAP
    down = -(-len(rows) // columns)
    sheet = Image.new(
        "RGB", (columns * (_CELL + _GAP) + _GAP, down * (height + _GAP) + _GAP), _PAPER
    )
    for place, (row, image) in enumerate(zip(rows, images, strict=True)):
        left = _GAP + place % columns * (_CELL + _GAP)
        top = _GAP + place // columns * (height + _GAP)
        sheet.paste(_drawn(row, image), (left, top))
        _write(sheet, _texts(row), left, top + _CELL + _GAP // 2)
    return sheet


def spread(rows: Sequence[PredictionRow], count: int) -> list[PredictionRow]:
    """Chooses rows for a sheet: as many of each task, evenly over its samples."""
    by_task: dict[str, list[PredictionRow]] = {}
    for row in rows:
        by_task.setdefault(row.sample.task, []).append(row)
    chosen = []
    for place, group in enumerate(by_task.values()):
        share = count // len(by_task) + (place < count % len(by_task))
        take = min(share, len(group))
        chosen += [group[i * len(group) // take] for i in range(take)]
    return chosen


def _drawn(row: PredictionRow, image: Image.Image) -> Image.Image:
    """The image scaled into a square cell, with its boxes."""
    scale = _CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    cell = Image.new("RGB", (_CELL, _CELL), (238, 238, 238))
    left, top = (_CELL - size[0]) // 2, (_CELL - size[1]) // 2
    cell.paste(image.convert("RGB").resize(size, Image.Resampling.BICUBIC), (left, top))
    drawing = ImageDraw.Draw(cell)
    predicted = [box for _, box in row.prediction.objects]
    if row.prediction.box is not None:
        predicted.append(row.prediction.box)
    marked = [(entry.box, TRUE_COLOR) for entry in row.sample.boxes]
    marked += [(box, PREDICTED_COLOR) for box in predicted]
    for box, color in marked:
        x0, y0, x1, y1 = (corner * scale for corner in box)
        drawing.rectangle((left + x0, top + y0, left + x1, top + y1), outline=color, width=3)
    return cell


def _texts(row: PredictionRow) -> list[Line]:
    sample, prediction = row.sample, row.prediction
    lines: list[Line] = [(sample.text or sample.instruction.strip(), _INK)]
    if sample.task == "grounding":
        return lines if prediction.box else [*lines, ("no box", PREDICTED_COLOR)]
    lines.append((prediction.text or "(nothing)", PREDICTED_COLOR))
    if row.truth:
        lines.append((row.truth, TRUE_COLOR))
    return lines


def _write(sheet: Image.Image, texts: Sequence[Line], left: int, top: int) -> None:
    drawing = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=_FONT_SIZE)
    room = _LINES
    for place, (text, color) in enumerate(texts):
        # Every text gets at least one line, however long the ones before it are.
        most = max(1, room - (len(texts) - place - 1))
        for line in textwrap.wrap(
            text, _LETTERS_PER_LINE, max_lines=most, placeholder=" …", break_long_words=True
        ):
            drawing.text((left, top), line, fill=color, font=font)
            top += _LINE
            room -= 1
