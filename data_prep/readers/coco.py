"""The parts of COCO's JSON that captions, instances and REFER share: images and their rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_prep.quarantine import Reason, Rejected
from data_prep.readers.base import place, rows_of, take


@dataclass(frozen=True, kw_only=True)
class CocoImage:
    """An entry of COCO's list of images."""

    name: str
    size: tuple[int, int] | None


def images_by_id(content: dict[str, Any], path: str) -> dict[int, CocoImage]:
    """The images of a COCO file by id; entries without an id or a file name are unknown images."""
    images: dict[int, CocoImage] = {}
    for row in rows_of(content, "images", path):
        try:
            width, height = row.get("width"), row.get("height")
            sized = isinstance(width, int) and isinstance(height, int)
            images[take(row, "id", int)] = CocoImage(
                name=take(row, "file_name", str), size=(width, height) if sized else None
            )
        except (Rejected, AttributeError):
            # Its annotations are quarantined one by one as annotations of an unknown image.
            continue
    return images


def known_image(images: dict[int, CocoImage], image_id: object) -> CocoImage:
    """The image with this id; Rejected when the file does not list it."""
    image = images.get(image_id) if isinstance(image_id, int) else None
    if image is None:
        raise Rejected(Reason.UNKNOWN_IMAGE, f"image id {image_id!r:.80} is not in the list")
    return image


def rows_by_image(content: dict[str, Any], path: str) -> Iterator[tuple[Any, str, list[Any]]]:
    """Groups annotations by image.

    Yields:
        The image's id, the place of its first annotation, and its annotations ordered by their
        own ids, so that the order of rows in the file means nothing. A row without a usable
        image id makes a group of its own.
    """
    groups: dict[Any, tuple[str, list[Any]]] = {}
    for number, row in enumerate(rows_of(content, "annotations", path)):
        image_id = row.get("image_id") if isinstance(row, dict) else None
        key = image_id if isinstance(image_id, int | str) else f"row {number}"
        where = place(path, f"annotations[{number}]")
        groups.setdefault(key, (where, []))[1].append(row)
    for image_id, (where, rows) in groups.items():
        yield image_id, where, sorted(rows, key=_row_id)


def _row_id(row: Any) -> int:
    row_id = row.get("id") if isinstance(row, dict) else None
    return row_id if isinstance(row_id, int) else -1
