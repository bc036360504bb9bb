"""COCO captions: one sample an image, with all of its captions as references."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from data_prep.config import SourceConfig
from data_prep.readers.base import ReadItem, SourceRecord, Workspace, guarded, place, take
from data_prep.readers.coco import CocoFile, images_of, uid_part
from data_prep.readers.scratch import Scratch

_FIELDS = ("id", "caption")


def read(config: SourceConfig, work: Workspace) -> Iterator[ReadItem]:
    """Yields a caption sample for every image that has captions."""
    path = str(config.annotations)
    with Scratch(work.folder) as scratch:
        file = CocoFile(path, scratch, _FIELDS)
        for key, number, rows in images_of(file):
            uid = f"{config.source_name}/{config.split}/{uid_part(key)}"
            where = place(path, f"annotations[{number}]")
            yield guarded(uid, where, partial(_record, uid, where, file, key, rows))


def _record(uid: str, where: str, file: CocoFile, key: str, rows: list[Any]) -> SourceRecord:
    return SourceRecord(
        uid=uid,
        task="caption",
        image=file.image(key).name,
        position=where,
        references=tuple(take(row, "caption", str) for row in rows),
    )
