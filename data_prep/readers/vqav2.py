"""VQAv2: one sample a question, with the distinct answers of its annotators."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from data_prep.config import SourceConfig
from data_prep.quarantine import Reason, Rejected, Rejection
from data_prep.readers.base import (
    ReadItem,
    SourceRecord,
    Workspace,
    guarded,
    identity_of,
    image_name,
    place,
    shown,
    take,
)
from data_prep.readers.coco import uid_part
from data_prep.readers.json_stream import stream_lists
from data_prep.readers.scratch import Scratch, Table, key_of, picked

_DEFAULT_IMAGE_NAME = "{id:012d}.jpg"


def read(config: SourceConfig, work: Workspace) -> Iterator[ReadItem]:
    """Yields a sample for every question; without an annotation file they have no answers.

    Questions and answers are joined by their ids, in whatever order they stand.
    """
    with Scratch(work.folder) as scratch:
        asked = scratch.table("asked")
        answers = None
        if config.annotations is not None:
            answers = scratch.table("answers")
            yield from _load_answers(config, answers)
        path = str(config.questions)
        for _, number, row in stream_lists(path, ("questions",)):
            where = place(path, f"questions[{number}]")
            question_id = row.get("question_id") if isinstance(row, dict) else None
            key = key_of(question_id)
            if answers and key is not None:
                asked.add(key, number, None)
            uid = _uid(config, identity_of(question_id) or f"row {number}")
            yield guarded(uid, where, partial(_record, config, uid, where, row, answers))
        if answers:
            yield from _never_asked(config, answers, asked)


def _uid(config: SourceConfig, identity: str) -> str:
    return f"{config.source_name}/{config.split}/{identity}"


def _load_answers(config: SourceConfig, answers: Table) -> Iterator[Rejection]:
    path = str(config.annotations)
    for _, number, row in stream_lists(path, ("annotations",)):
        key = key_of(row.get("question_id")) if isinstance(row, dict) else None
        if key is None:
            # The question that it belongs to is missed when it comes to be answered.
            yield Rejection(
                uid=_uid(config, f"annotation row {number}"),
                position=place(path, f"annotations[{number}]"),
                reason=Reason.MALFORMED_ANNOTATION,
                detail=f"answers without a 'question_id': {shown(row)}",
            )
            continue
        answers.add(key, number, picked(row, ("image_id", "answers")))


def _never_asked(config: SourceConfig, answers: Table, asked: Table) -> Iterator[Rejection]:
    for key, rows in answers.groups_not_in(asked):
        for number, _ in rows:
            yield Rejection(
                uid=_uid(config, uid_part(key)),
                position=place(str(config.annotations), f"annotations[{number}]"),
                reason=Reason.UNKNOWN_QUESTION,
                detail=f"answers for question {uid_part(key)}, which nobody asks",
            )


def _record(
    config: SourceConfig, uid: str, where: str, row: Any, answers: Table | None
) -> SourceRecord:
    if key_of(take(row, "question_id", (int, str))) is None:
        raise Rejected(Reason.MALFORMED_ANNOTATION, f"question_id is {shown(row['question_id'])}")
    return SourceRecord(
        uid=uid,
        task="vqa",
        image=image_name(
            config.image_name or _DEFAULT_IMAGE_NAME, take(row, "image_id", (int, str))
        ),
        position=where,
        text=take(row, "question", str),
        answers=() if answers is None else _counted(row, answers),
    )


def _counted(question: Any, answers: Table) -> tuple[tuple[str, int], ...]:
    question_id = question["question_id"]
    found = answers.get(key_of(question_id) or "")
    if not found:
        raise Rejected(Reason.NO_ANSWERS, f"question {question_id} has no annotation")
    if len(found) > 1:
        raise Rejected(
            Reason.MALFORMED_ANNOTATION, f"question {question_id} has {len(found)} annotations"
        )
    annotation = found[0][1]
    if annotation.get("image_id", question["image_id"]) != question["image_id"]:
        raise Rejected(
            Reason.MALFORMED_ANNOTATION,
            f"asked about image {shown(question['image_id'])}, "
            f"answered for {shown(annotation['image_id'])}",
        )
    given = [take(answer, "answer", str) for answer in take(annotation, "answers", list)]
    if not given:
        raise Rejected(Reason.NO_ANSWERS, f"question {question_id} has no answers")
    # most_common keeps the order of first appearance among equal counts.
    return tuple(Counter(given).most_common())
