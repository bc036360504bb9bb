"""What every reader shares: the record that it yields, and strict access to annotation files.

A reader turns annotation files into SourceRecords, with boxes still in pixels of the original
image. It never opens an image. A broken annotation becomes a Rejection; a broken file is a
DataError, since then nothing in it can be trusted.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_prep.config import SourceConfig
from data_prep.errors import DataError
from data_prep.fields import canonical_json
from data_prep.quarantine import Reason, Rejected, Rejection

Corners = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """One sample as its source has it.

    Attributes:
        uid: '<source name>/<split>/<id of the annotation>'.
        task: The task, one of data_prep.instructions.TASKS.
        image: Name of the image file, relative to the source's image folder.
        position: Where the annotation lies: file name and place in it.
        size: Width and height that the boxes refer to, where the source says.
        text: Raw question, expression or hypothesis.
        premise: Raw caption beside the hypothesis.
        references: Raw captions.
        answers: (text, count), most frequent first.
        boxes: (x0, y0, x1, y1) in pixels of the original image, with a label or None.
        label: Entailment's yes, no or maybe.
        address: Where the image's bytes lie in the source's store, if not under its name.
    """

    uid: str
    task: str
    image: str
    position: str
    size: tuple[int, int] | None = None
    text: str | None = None
    premise: str | None = None
    references: tuple[str, ...] = ()
    answers: tuple[tuple[str, int], ...] = ()
    boxes: tuple[tuple[Corners, str | None], ...] = ()
    label: str | None = None
    address: str | None = None

    def to_bytes(self, source: int) -> bytes:
        """Canonical bytes, with the number of the source in its dataset's configuration.

        Raises:
            Rejected: A text holds what UTF-8 cannot (lone surrogates).
        """
        try:
            return canonical_json({"s": source, **vars(self)})
        except (UnicodeEncodeError, ValueError) as error:
            raise Rejected(Reason.BAD_TEXT, str(error)) from error

    @classmethod
    def from_bytes(cls, content: bytes) -> tuple[int, "SourceRecord"]:
        """The number of the source and the record that to_bytes was given."""
        fields = json.loads(content)
        source = fields.pop("s")
        fields["size"] = tuple(fields["size"]) if fields["size"] else None
        fields["references"] = tuple(fields["references"])
        fields["answers"] = tuple((text, count) for text, count in fields["answers"])
        fields["boxes"] = tuple((tuple(box), label) for box, label in fields["boxes"])
        return source, cls(**fields)


ReadItem = SourceRecord | Rejection
Reader = Callable[[SourceConfig], Iterator[ReadItem]]


def load_json(path: str) -> dict[str, Any]:
    """Reads a JSON object from a file; DataError when it is missing or something else."""
    try:
        with Path(path).open("rb") as file:
            content = json.load(file)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object, found {type(content).__name__}")
    return content


def rows_of(content: Mapping[str, Any], name: str, path: str) -> list[Any]:
    """The list called name of an annotation file; DataError when there is none."""
    rows = content.get(name)
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list {name!r}; is this the right file?")
    return rows


def take(row: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """A field of one annotation, checked for its type; Rejected when it is not there."""
    if not isinstance(row, Mapping):
        raise Rejected(Reason.MALFORMED_ANNOTATION, f"expected an object, found {row!r:.80}")
    if name not in row:
        raise Rejected(Reason.MALFORMED_ANNOTATION, f"field {name!r} is missing")
    value = row[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Rejected(Reason.MALFORMED_ANNOTATION, f"field {name!r} is {value!r:.80}")
    return value


def take_box(row: Any) -> Corners:
    """COCO's bbox (x, y, width, height) as corners; Rejected when it is not a box."""
    values = take(row, "bbox", list)
    if len(values) != 4 or not all(isinstance(v, int | float) for v in values):
        raise Rejected(Reason.BAD_BOX, f"bbox is {values!r:.80}")
    x, y, width, height = (float(v) for v in values)
    if not all(map(math.isfinite, (x, y, width, height))) or width <= 0 or height <= 0:
        raise Rejected(Reason.BAD_BOX, f"bbox is {values!r:.80}")
    return x, y, x + width, y + height


def image_name(pattern: str, image_id: Any) -> str:
    """Fills an image's id into a pattern such as '{id:012d}.jpg'; Rejected when it cannot be."""
    try:
        return pattern.format(id=int(image_id) if ":" in pattern else image_id)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise Rejected(
            Reason.MALFORMED_ANNOTATION, f"image id {image_id!r:.80} does not fit {pattern!r}"
        ) from error


def guarded(uid: str, position: str, build: Callable[[], SourceRecord]) -> ReadItem:
    """Builds a record, or the rejection that says why it could not be built."""
    try:
        return build()
    except Rejected as rejected:
        return Rejection(uid=uid, position=position, reason=rejected.reason, detail=rejected.detail)


@lru_cache(maxsize=16)
def _file_name(path: str) -> str:
    return Path(path).name


def place(path: str, where: str) -> str:
    """Source position: file name and place in it, without the folders of this machine."""
    return f"{_file_name(path)}:{where}"
