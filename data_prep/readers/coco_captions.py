"""COCO captions: one sample an image, with all of its captions as references."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from data_prep.config import SourceConfig
from data_prep.readers.base import ReadItem, SourceRecord, guarded, load_json, take
from data_prep.readers.coco import CocoImage, images_by_id, known_image, rows_by_image


def read(config: SourceConfig) -> Iterator[ReadItem]:
    """Yields a caption sample for every image that has captions."""
    path = str(config.annotations)
    content = load_json(path)
    images = images_by_id(content, path)
    for image_id, where, rows in rows_by_image(content, path):
        uid = f"{config.source_name}/{config.split}/{image_id}"
        yield guarded(uid, where, partial(_record, uid, where, images, image_id, rows))


def _record(
    uid: str, where: str, images: dict[int, CocoImage], image_id: object, rows: list[Any]
) -> SourceRecord:
    return SourceRecord(
        uid=uid,
        task="caption",
        image=known_image(images, image_id).name,
        position=where,
        references=tuple(take(row, "caption", str) for row in rows),
    )
