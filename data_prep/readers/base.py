"""What every reader shares: the record that it yields, and strict access to annotations.

A reader turns annotation files into SourceRecords, with boxes still in pixels of the original
image. It streams: what it holds does not grow with the files. It never decodes an image. A broken
annotation becomes a Rejection; a broken file is a DataError, since then nothing in it can be
trusted.
"""

import json
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_prep.config import SourceConfig
from data_prep.fields import canonical_json
from data_prep.quarantine import Reason, Rejected, Rejection
from data_prep.stores import input_name

Corners = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """One sample as its source has it.

    Attributes:
        uid: '<source name>/<split>/<id of the annotation>'.
        task: The task, one of data_prep.instructions.TASKS.
        image: Name of the image, relative to the source's folder of images where it is a file
            there. It goes into the sample, so the order of rows may not decide it.
        position: Where the annotation lies: file name and place in it.
        size: Width and height that the boxes refer to, where the source says.
        text: Raw question, expression or hypothesis.
        premise: Raw caption beside the hypothesis.
        references: Raw captions.
        answers: (text, count), most frequent first.
        boxes: (x0, y0, x1, y1) in pixels of the original image, with a label or None.
        label: Entailment's yes, no or maybe.
        address: Where the store of images has the bytes, if not under the image's name.
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

    def rejection(self, rejected: Rejected) -> Rejection:
        """The quarantine row that it becomes."""
        return Rejection(
            uid=self.uid,
            position=self.position,
            reason=rejected.reason,
            detail=rejected.detail,
        )

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


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Where a reader may write while it reads.

    Attributes:
        folder: For what it has to join; everything in there is temporary.
        blob: File for images that cannot be reached where they are; None leaves it unwritten.
        blob_name: Its name in addresses.
        blob_grows: Whether its images are read while it is written: then it has its name from the
            beginning, and stays incomplete when reading is broken off.
    """

    folder: Path
    blob: Path | None = None
    blob_name: str = "images.blob"
    blob_grows: bool = False


Reader = Callable[[SourceConfig, Workspace], Iterator[ReadItem]]

_SHOWN = reprlib.Repr()
_SHOWN.maxlevel = 3
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 80


def shown(value: object) -> str:
    """A foreign value for a message: short, and no matter how deep or endless it is."""
    return _SHOWN.repr(value)[:80]


def identity_of(value: object) -> str | None:
    """The text of an id; None for what is no id."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    if isinstance(value, int):
        return str(value) if abs(value) < 1 << 63 else None
    return value or None


def take(row: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """A field of one annotation, checked for its type; Rejected when it is not there."""
    if not isinstance(row, Mapping):
        raise Rejected(Reason.MALFORMED_ANNOTATION, f"expected an object, found {shown(row)}")
    if name not in row:
        raise Rejected(Reason.MALFORMED_ANNOTATION, f"field {name!r} is missing")
    value = row[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Rejected(Reason.MALFORMED_ANNOTATION, f"field {name!r} is {shown(value)}")
    return value


def take_box(row: Any) -> Corners:
    """COCO's bbox (x, y, width, height) as corners; Rejected when it is not a box."""
    x, y, width, height = four_numbers(take(row, "bbox", list))
    return checked_box((x, y, x + width, y + height))


def four_numbers(values: Any) -> Corners:
    """Four finite numbers; Rejected when it is something else."""
    plain = (
        isinstance(values, list | tuple)
        and len(values) == 4
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    )
    try:
        numbers = tuple(float(v) for v in values) if plain else ()
    except OverflowError:
        numbers = ()
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise Rejected(Reason.BAD_BOX, f"expected four numbers, found {shown(values)}")
    return numbers


def checked_box(corners: Corners) -> Corners:
    """Corners as they came; Rejected when they enclose no area."""
    x0, y0, x1, y1 = corners
    if not (x0 < x1 and y0 < y1 and all(map(math.isfinite, corners))):
        raise Rejected(Reason.BAD_BOX, f"{corners} encloses no area")
    return corners


def image_name(pattern: str, image_id: Any) -> str:
    """Fills an image's id into a pattern such as '{id:012d}.jpg'; Rejected when it cannot be."""
    try:
        return pattern.format(id=int(image_id) if ":" in pattern else image_id)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise Rejected(
            Reason.MALFORMED_ANNOTATION, f"image id {shown(image_id)} does not fit {pattern!r}"
        ) from error


def guarded(uid: str, position: str, build: Callable[[], SourceRecord]) -> ReadItem:
    """Builds a record, or the rejection that says why it could not be built."""
    try:
        return build()
    except Rejected as rejected:
        return Rejection(uid=uid, position=position, reason=rejected.reason, detail=rejected.detail)


@lru_cache(maxsize=16)
def _file_name(path: str) -> str:
    return input_name(path)


def place(path: str, where: str) -> str:
    """Source position: file name and place in it, without the folders of this machine."""
    return f"{_file_name(path)}:{where}"
