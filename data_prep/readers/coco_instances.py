"""COCO instances as detection: one sample an image, with all of its boxes from left to right."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from data_prep.config import SourceConfig
from data_prep.quarantine import Reason, Rejected
from data_prep.readers.base import (
    Corners,
    ReadItem,
    SourceRecord,
    Workspace,
    guarded,
    place,
    shown,
    take,
    take_box,
)
from data_prep.readers.coco import CocoFile, images_of, uid_part
from data_prep.readers.scratch import Scratch, key_of

_FIELDS = ("id", "category_id", "bbox", "iscrowd")


def read(config: SourceConfig, work: Workspace) -> Iterator[ReadItem]:
    """Yields a detection sample for every image with boxes; crowd regions are no objects."""
    path = str(config.annotations)
    with Scratch(work.folder) as scratch:
        file = CocoFile(path, scratch, _FIELDS, categories=True)
        for key, number, rows in images_of(file):
            objects = [row for row in rows if not (isinstance(row, dict) and row.get("iscrowd"))]
            if not objects:
                continue
            uid = f"{config.source_name}/{config.split}/{uid_part(key)}"
            where = place(path, f"annotations[{number}]")
            yield guarded(uid, where, partial(_record, uid, where, file, key, objects))


def _record(uid: str, where: str, file: CocoFile, key: str, rows: list[Any]) -> SourceRecord:
    image = file.image(key)
    boxes: list[tuple[Corners, str | None]] = []
    for row in rows:
        category = take(row, "category_id", (int, str))
        label = file.labels.get(key_of(category) or "")
        if not isinstance(label, str) or not label:
            raise Rejected(Reason.BAD_LABEL, f"category {shown(category)} has no name")
        boxes.append((take_box(row), label))
    # Left to right gives the model one order to learn; ties must not depend on the file.
    boxes.sort()
    return SourceRecord(
        uid=uid,
        task="detection",
        image=image.name,
        position=where,
        size=image.size,
        boxes=tuple(boxes),
    )
