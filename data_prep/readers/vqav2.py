"""VQAv2: one sample a question, with the distinct answers of its annotators."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from data_prep.config import SourceConfig
from data_prep.errors import DataError
from data_prep.quarantine import Reason, Rejected, Rejection
from data_prep.readers.base import (
    ReadItem,
    SourceRecord,
    guarded,
    image_name,
    load_json,
    place,
    rows_of,
    take,
)

_DEFAULT_IMAGE_NAME = "{id:012d}.jpg"


def read(config: SourceConfig) -> Iterator[ReadItem]:
    """Yields a sample for every question; without an annotation file they have no answers."""
    path = str(config.questions)
    answers = _answers(config)
    asked: set[int] = set()
    for number, row in enumerate(rows_of(load_json(path), "questions", path)):
        where = place(path, f"questions[{number}]")
        question_id = row.get("question_id") if isinstance(row, dict) else None
        if isinstance(question_id, int):
            asked.add(question_id)
        uid = f"{config.source_name}/{config.split}/{question_id if question_id else number}"
        yield guarded(uid, where, partial(_record, config, uid, where, row, answers))
    for question_id, (where, _) in (answers or {}).items():
        if question_id not in asked:
            yield Rejection(
                uid=f"{config.source_name}/{config.split}/{question_id}",
                position=where,
                reason=Reason.UNKNOWN_QUESTION,
                detail=f"answers for question {question_id}, which nobody asks",
            )


def _answers(config: SourceConfig) -> dict[int, tuple[str, Any]] | None:
    if config.annotations is None:
        return None
    path = config.annotations
    answers: dict[int, tuple[str, Any]] = {}
    for number, row in enumerate(rows_of(load_json(path), "annotations", path)):
        where = f"annotations[{number}]"
        try:
            question_id = take(row, "question_id", int)
        except Rejected as rejected:
            # Without its question's id it cannot be told which sample it would spoil.
            raise DataError(f"{path}: {where}: {rejected.detail}") from rejected
        answers[question_id] = (place(path, where), row)
    return answers


def _record(
    config: SourceConfig,
    uid: str,
    where: str,
    row: Any,
    answers: dict[int, tuple[str, Any]] | None,
) -> SourceRecord:
    question_id = take(row, "question_id", int)
    return SourceRecord(
        uid=uid,
        task="vqa",
        image=image_name(config.image_name or _DEFAULT_IMAGE_NAME, take(row, "image_id", int)),
        position=where,
        text=take(row, "question", str),
        answers=() if answers is None else _counted(question_id, row, answers),
    )


def _counted(
    question_id: int, question: Any, answers: dict[int, tuple[str, Any]]
) -> tuple[tuple[str, int], ...]:
    if question_id not in answers:
        raise Rejected(Reason.NO_ANSWERS, f"question {question_id} has no annotation")
    annotation = answers[question_id][1]
    if annotation.get("image_id", question["image_id"]) != question["image_id"]:
        raise Rejected(
            Reason.MALFORMED_ANNOTATION,
            f"asked about image {question['image_id']}, answered for {annotation['image_id']}",
        )
    given = [take(answer, "answer", str) for answer in take(annotation, "answers", list)]
    if not given:
        raise Rejected(Reason.NO_ANSWERS, f"question {question_id} has no answers")
    # most_common keeps the order of first appearance among equal counts.
    return tuple(Counter(given).most_common())
