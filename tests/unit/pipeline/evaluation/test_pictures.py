"""The sheet of predictions: which are chosen, and where their boxes are."""

from __future__ import annotations

import pytest
from PIL import Image

from data_prep.instructions import source_text
from data_prep.schema import Box, ImageFacts, Sample
from pipeline.evaluation.pictures import PREDICTED_COLOR, TRUE_COLOR, picture_sheet, spread
from pipeline.evaluation.report import PredictionRow
from pipeline.tasks.base import Prediction

CELL, GAP = 260, 14


def _row(task: str, position: int = 0, text: str = "the red circle") -> PredictionRow:
    sample = Sample(
        uid=f"{task}-{position}",
        task=task,
        source="test",
        split="val",
        image=ImageFacts(
            width=130,
            height=65,
            format="JPEG",
            sha256="0" * 64,
            original_width=130,
            original_height=65,
            name="x.jpg",
        ),
        text=text,
        instruction=source_text(task, text),
        boxes=(Box(box=(10.0, 10.0, 60.0, 50.0)),) if task == "grounding" else (),
    )
    box = (70.0, 10.0, 120.0, 50.0) if task == "grounding" else None
    return PredictionRow(
        position=position, sample=sample, prediction=Prediction(text="red", box=box, score=0.0)
    )


def test_boxes_are_drawn_where_they_are_in_the_scaled_image() -> None:
    sheet = picture_sheet([_row("grounding")], [Image.new("RGB", (130, 65), "white")])
    # 130 x 65 pixels are doubled and stand in the middle of the cell.
    assert sheet.getpixel((GAP + 20, GAP + 65 + 60)) == TRUE_COLOR
    assert sheet.getpixel((GAP + 240, GAP + 65 + 60)) == PREDICTED_COLOR
    assert sheet.getpixel((GAP + 130, GAP + 65 + 60)) == (255, 255, 255)


def test_long_texts_stay_inside_their_cell() -> None:
    row = _row("vqa", text="which " * 100 + "thing")
    sheet = picture_sheet([row], [Image.new("RGB", (130, 65), "white")])
    edge = sheet.crop((0, sheet.height - GAP, sheet.width, sheet.height))
    assert edge.getcolors() == [(edge.width * edge.height, (255, 255, 255))]


def test_every_task_is_on_the_sheet() -> None:
    rows = [_row("grounding", i) for i in range(50)] + [_row("vqa", i) for i in range(3)]
    chosen = spread(rows, 7)
    assert [row.sample.uid for row in chosen] == [
        "grounding-0",
        "grounding-12",
        "grounding-25",
        "grounding-37",
        "vqa-0",
        "vqa-1",
        "vqa-2",
    ]
    assert spread(rows, 0) == []


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="no predictions"):
        picture_sheet([], [])
