"""OFA's own TSV files: one sample a line, its image beside it as base64.

The columns are those that OFA's data come in; a recipe's `columns` says where others are. Images
stay where they are: a sample names the range of bytes of its image's text, so nothing is copied
and the file has to stay in its place until the shards are made.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from data_prep.config import SourceConfig
from data_prep.quarantine import Reason, Rejected
from data_prep.readers.base import ReadItem, SourceRecord, Workspace, guarded, place, shown
from data_prep.readers.inputs import input_files, lines, require_ranges
from data_prep.readers.rows import RowImage, row_record
from data_prep.stores import input_name, range_address

COLUMNS: Final[dict[str, dict[str, int]]] = {
    "caption": {"uid": 0, "image_id": 1, "references": 2, "image": 4},
    "vqa": {"uid": 0, "image_id": 1, "text": 2, "answers": 3, "image": 5},
    "grounding": {"uid": 0, "image_id": 1, "text": 2, "box": 3, "image": 4},
    "entailment": {"uid": 0, "image_id": 1, "image": 2, "text": 3, "premise": 4, "label": 5},
}
"""Column numbers of OFA's published files, from 0."""

_LIST_SEPARATOR = "&&"
_CONFIDENCE_SEPARATOR = "|!+"
_CONFIDENCE_STEP = 0.3
"""What each annotator adds to an answer's confidence, up to 1."""


def read(config: SourceConfig, work: Workspace) -> Iterator[ReadItem]:
    """Yields a sample for every line that is not blank."""
    task = str(config.task)
    columns = {**COLUMNS[task], **{role: int(at) for role, at in (config.columns or {}).items()}}
    for path in input_files(str(config.annotations)):
        require_ranges(path)
        for number, offset, line in lines(path):
            where = place(path, f"line {number}")
            fields = line.rstrip(b"\r\n").split(b"\t")
            uid = f"{config.source_name}/{config.split}/{_identity(fields, columns, number)}"
            build = partial(_record, task, uid, where, path, offset, fields, columns)
            yield guarded(uid, where, build)


def _identity(fields: list[bytes], columns: dict[str, int], number: int) -> str:
    found = fields[columns["uid"]] if columns["uid"] < len(fields) else b""
    # A broken id is rejected with the row; here it only has to be told from the others.
    return found[:200].decode("utf-8", "backslashreplace") or f"line {number}"


def _record(
    task: str,
    uid: str,
    where: str,
    path: str,
    offset: int,
    fields: list[bytes],
    columns: dict[str, int],
) -> SourceRecord:
    if max(columns.values()) >= len(fields):
        raise Rejected(
            Reason.MALFORMED_ANNOTATION,
            f"{len(fields)} columns, column {max(columns.values())} is needed",
        )
    texts = {role: _text(fields[at]) for role, at in columns.items() if role != "image"}
    at = columns["image"]
    length = len(fields[at])
    if not texts["uid"]:
        raise Rejected(Reason.MALFORMED_ANNOTATION, "the column 'uid' is empty")
    if not length:
        raise Rejected(Reason.MISSING_IMAGE, "the column 'image' is empty")
    begin = offset + sum(len(field) + 1 for field in fields[:at])
    image = RowImage(
        name=texts.get("image_id") or texts["uid"],
        address=range_address(input_name(path), begin, length, base64=True),
    )
    values: dict[str, Any] = dict(texts)
    if "references" in texts:
        values["references"] = texts["references"].split(_LIST_SEPARATOR)
    if "box" in texts:
        values["box"] = _box(texts["box"])
    answers = texts.get("answers")
    record = row_record(task, uid, where, image, {**values, "answers": None})
    return record if answers is None else _with_answers(record, answers)


def _text(field: bytes) -> str:
    try:
        return field.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Rejected(Reason.BAD_TEXT, f"{shown(field)}: {error.reason}") from error


def _box(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise Rejected(Reason.BAD_BOX, f"expected x0,y0,x1,y1, found {shown(text)}") from error


def _with_answers(record: SourceRecord, text: str) -> SourceRecord:
    answers = tuple(_answer(part) for part in text.split(_LIST_SEPARATOR))
    ordered = sorted(answers, key=lambda answer: -answer[1])
    return SourceRecord(**{**vars(record), "answers": tuple(ordered)})


def _answer(part: str) -> tuple[str, int]:
    """OFA's '<confidence>|!+<answer>' as an answer and the number of annotators behind it."""
    confidence, separator, answer = part.partition(_CONFIDENCE_SEPARATOR)
    try:
        value = float(confidence)
    except ValueError:
        value = math.nan
    if not separator or not answer or not 0 < value <= 1:
        raise Rejected(Reason.MALFORMED_ANNOTATION, f"expected '0.9|!+answer', found {shown(part)}")
    count = math.ceil(value / _CONFIDENCE_STEP - 1e-6)
    if abs(min(1.0, _CONFIDENCE_STEP * count) - value) > 1e-3:
        raise Rejected(
            Reason.MALFORMED_ANNOTATION, f"confidence {value} is none of 0.3, 0.6, 0.9 and 1.0"
        )
    return answer, count
