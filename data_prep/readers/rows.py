"""A row of named values as a record: what tables, TSV files and WebDataset shards share."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.quarantine import Reason, Rejected
from data_prep.readers.base import (
    Corners,
    SourceRecord,
    checked_box,
    four_numbers,
    shown,
    take,
)
from data_prep.readers.snli_ve import LABELS
from data_prep.schema import ENTAILMENT_LABELS

UNANIMOUS = 10
"""Annotators behind an answer that a source gives alone: as many as VQAv2 asks."""


@dataclass(frozen=True, kw_only=True)
class RowImage:
    """An image of a row: the name that goes into the sample, and where its bytes lie."""

    name: str
    address: str | None


def row_record(
    task: str, uid: str, position: str, image: RowImage, values: Mapping[str, Any]
) -> SourceRecord:
    """Builds a record from the values of a row, by the roles of its task.

    Args:
        task: The task.
        uid: The whole uid.
        position: Where the row lies.
        image: The row's image.
        values: The other roles: `text`, `premise` and `label` are text, `references` a text or a
            list of texts, `answers` a text, a list of texts or of VQAv2's answer objects, `box` is
            (x0, y0, x1, y1) in pixels, `boxes` a list of such, `labels` a list of texts.

    Raises:
        Rejected: A value is missing or of another form.
    """
    return SourceRecord(
        uid=uid,
        task=task,
        image=image.name,
        address=image.address,
        position=position,
        text=take(values, "text", str) if task in ("vqa", "grounding", "entailment") else None,
        premise=_optional_text(values, "premise") if task == "entailment" else None,
        references=_texts(values, "references") if task == "caption" else (),
        answers=_answers(values) if task == "vqa" else (),
        boxes=_boxes(task, values),
        label=_label(values) if task == "entailment" else None,
    )


def _optional_text(values: Mapping[str, Any], name: str) -> str | None:
    return None if values.get(name) is None else str(take(values, name, str))


def _texts(values: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = take(values, name, (str, list, tuple))
    texts = (found,) if isinstance(found, str) else tuple(found)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise Rejected(Reason.MALFORMED_ANNOTATION, f"{name!r} is {shown(found)}")
    return texts


def _answers(values: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    found = values.get("answers")
    if found is None:
        return ()
    if isinstance(found, str):
        return ((found, UNANIMOUS),)
    given = [
        answer if isinstance(answer, str) else take(answer, "answer", str)
        for answer in take(values, "answers", (list, tuple))
    ]
    if not given:
        raise Rejected(Reason.NO_ANSWERS, "the list of answers is empty")
    return tuple(Counter(given).most_common())


def _boxes(task: str, values: Mapping[str, Any]) -> tuple[tuple[Corners, str | None], ...]:
    if task == "grounding":
        return ((checked_box(four_numbers(values.get("box"))), None),)
    if task != "detection":
        return ()
    boxes, labels = take(values, "boxes", (list, tuple)), take(values, "labels", (list, tuple))
    if not boxes or len(boxes) != len(labels):
        raise Rejected(Reason.MALFORMED_ANNOTATION, f"{len(boxes)} boxes, {len(labels)} labels")
    if not all(isinstance(label, str) and label for label in labels):
        raise Rejected(Reason.BAD_LABEL, f"'labels' is {shown(labels)}")
    corners = [checked_box(four_numbers(box)) for box in boxes]
    return tuple(sorted(zip(corners, labels, strict=True)))


def _label(values: Mapping[str, Any]) -> str:
    label = str(take(values, "label", str)).strip()
    found = LABELS.get(label, label)
    if found not in ENTAILMENT_LABELS:
        raise Rejected(Reason.BAD_LABEL, f"label {shown(label)}")
    return found
