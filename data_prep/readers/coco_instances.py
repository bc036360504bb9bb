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
    guarded,
    load_json,
    rows_of,
    take,
    take_box,
)
from data_prep.readers.coco import CocoImage, images_by_id, known_image, rows_by_image


def read(config: SourceConfig) -> Iterator[ReadItem]:
    """Yields a detection sample for every image with boxes; crowd regions are no objects."""
    path = str(config.annotations)
    content = load_json(path)
    images = images_by_id(content, path)
    labels: dict[object, object] = {
        row.get("id"): row.get("name")
        for row in rows_of(content, "categories", path)
        if isinstance(row, dict)
    }
    for image_id, where, rows in rows_by_image(content, path):
        objects = [row for row in rows if not (isinstance(row, dict) and row.get("iscrowd"))]
        if not objects:
            continue
        uid = f"{config.source_name}/{config.split}/{image_id}"
        yield guarded(uid, where, partial(_record, uid, where, images, labels, image_id, objects))


def _record(
    uid: str,
    where: str,
    images: dict[int, CocoImage],
    labels: dict[object, object],
    image_id: object,
    rows: list[Any],
) -> SourceRecord:
    image = known_image(images, image_id)
    boxes: list[tuple[Corners, str | None]] = []
    for row in rows:
        label = labels.get(take(row, "category_id", int))
        if not isinstance(label, str) or not label:
            raise Rejected(Reason.BAD_LABEL, f"category {row['category_id']} has no name")
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
