"""The parts of COCO's JSON that captions, instances and REFER share: images and their rows."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_prep.quarantine import Reason, Rejected
from data_prep.readers.base import shown
from data_prep.readers.json_stream import stream_lists
from data_prep.readers.scratch import Scratch, Table, key_of, picked


@dataclass(frozen=True, kw_only=True)
class CocoImage:
    """An entry of COCO's list of images."""

    name: str
    size: tuple[int, int] | None


class CocoFile:
    """A COCO file whose lists lie in a scratch, to be joined whatever their order is."""

    def __init__(
        self,
        path: str,
        scratch: Scratch,
        fields: tuple[str, ...],
        *,
        key: str = "image_id",
        categories: bool = False,
    ) -> None:
        """Reads the file.

        Args:
            path: The file.
            scratch: Where its rows are kept.
            fields: What is needed of an annotation.
            key: The field of annotations that they are looked up by.
            categories: Whether the file has to have categories, too.

        Raises:
            DataError: The file is unusable as a whole.
        """
        self._images, self.annotations = scratch.table("images"), scratch.table("annotations")
        self.labels: dict[str, object] = {}
        lists = ("images", "annotations", "categories") if categories else ("images", "annotations")
        for name, number, row in stream_lists(path, lists):
            field = key if name == "annotations" else "id"
            row_key = key_of(row.get(field)) if isinstance(row, dict) else None
            if name == "annotations":
                _add_annotation(self.annotations, row_key, number, row, fields)
            elif row_key is None:
                # Its annotations are quarantined one by one as annotations of an unknown image.
                continue
            elif name == "images":
                self._images.add(row_key, number, picked(row, ("file_name", "width", "height")))
            else:
                self.labels[row_key] = row.get("name")

    def image(self, key: str) -> CocoImage:
        """The image with this id's key; Rejected when the file does not list it by a file name."""
        for _, row in self._images.get(key):
            name, width, height = (row.get(field) for field in ("file_name", "width", "height"))
            if isinstance(name, str):
                sized = isinstance(width, int) and isinstance(height, int)
                return CocoImage(name=name, size=(width, height) if sized else None)
        raise Rejected(Reason.UNKNOWN_IMAGE, f"image id {shown(key)} is not in the list")


def uid_part(key: str) -> str:
    """What a uid says of a key: the id itself, or the row that has none."""
    return key if key.startswith("row ") else str(json.loads(key))


def _add_annotation(
    table: Table, key: str | None, number: int, row: Any, fields: tuple[str, ...]
) -> None:
    if key is None:
        # Without a usable key it makes a group of its own, whose image nobody knows.
        table.add(
            f"row {number}", number, picked(row, fields) if isinstance(row, dict) else shown(row)
        )
    else:
        table.add(key, number, picked(row, fields))


def images_of(file: CocoFile) -> Iterator[tuple[str, int, list[Any]]]:
    """Every image's key, the place of its first annotation, and its annotations by their ids."""
    for key, rows in file.annotations.groups():
        yield key, min(number for number, _ in rows), [row for _, row in rows]
