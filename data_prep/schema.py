"""The contract between preparation and training: one sample, versioned.

A prepared dataset is a folder of WebDataset shards whose samples are an image member and
`<key>.json`, with `index.parquet` (where each member lies), `quarantine.parquet` (what was rejected
and why) and a manifest (data_prep.manifest). Every record is checked when it is built, so a sample
that exists is a valid one. Written out in docs/reference/sample-schema.md.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from data_prep.errors import DataError
from data_prep.fields import JsonFields, field_names, is_number, load_object, writable
from data_prep.instructions import TASKS

SCHEMA_VERSION: Final = 1
KEY_DIGITS: Final = 9
"""Digits of a sample's key, its position in the dataset."""

IMAGE_EXTENSIONS: Final = {
    "JPEG": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tiff",
}
"""Extension of an image's tar member by ImageFacts.format, which is Pillow's name of it."""

ENTAILMENT_LABELS: Final = ("yes", "no", "maybe")


@dataclass(frozen=True, kw_only=True)
class Box:
    """A box (x0, y0, x1, y1) in pixels of the stored image, and what it shows if that is known."""

    box: tuple[float, float, float, float]
    label: str | None = None

    @classmethod
    def from_json(cls, record: object, where: str) -> Self:
        """Reads what json.loads gave; DataError when it is not a box."""
        fields = JsonFields(record, where, _BOX)
        corners = fields.items("box")
        if len(corners) != 4 or not all(map(is_number, corners)):
            raise DataError(f"{where}.box: expected four numbers, found {corners!r:.80}")
        x0, y0, x1, y1 = (float(c) for c in corners)
        return cls(box=(x0, y0, x1, y1), label=fields.text_or_none("label"))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One distinct answer to a question.

    confidence is min(1, 0.3 * count): the score that VQA gives to an answer which count of the ten
    annotators gave.
    """

    text: str
    count: int
    confidence: float

    @classmethod
    def from_json(cls, record: object, where: str) -> Self:
        """Reads what json.loads gave; DataError when it is not an answer."""
        fields = JsonFields(record, where, _ANSWER)
        return cls(
            text=fields.text("text"),
            count=fields.integer("count"),
            confidence=fields.number("confidence"),
        )


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """The stored image (pixels, format, SHA-256 of its bytes) and the one that it was made from."""

    width: int
    height: int
    format: str
    sha256: str
    original_width: int
    original_height: int
    name: str

    @classmethod
    def from_json(cls, record: object, where: str) -> Self:
        """Reads what json.loads gave; DataError when these are not image facts."""
        fields = JsonFields(record, where, _IMAGE)
        return cls(
            width=fields.integer("width"),
            height=fields.integer("height"),
            format=fields.text("format"),
            sha256=fields.text("sha256"),
            original_width=fields.integer("original_width"),
            original_height=fields.integer("original_height"),
            name=fields.text("name"),
        )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image with one task's text and targets.

    Attributes:
        uid: Unique in its dataset: reader, split and the annotation's own id.
        task: One of data_prep.instructions.TASKS.
        source: Name of the reader that it came through.
        split: Split as the source calls it.
        image: Facts about the stored image.
        text: Raw question, expression or hypothesis; None for caption and detection.
        premise: Raw caption beside a hypothesis, where the source has one.
        references: Raw captions.
        answers: Distinct answers, most frequent first, ties in order of appearance.
        boxes: In pixels of the stored image; grounding has one, detection all, left to right.
        label: Entailment's yes, no or maybe.
        instruction: The rendered source text, leading blank included.
    """

    uid: str
    task: str
    source: str
    split: str
    image: ImageFacts
    text: str | None = None
    premise: str | None = None
    references: tuple[str, ...] = ()
    answers: tuple[Answer, ...] = ()
    boxes: tuple[Box, ...] = ()
    label: str | None = None
    instruction: str

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise DataError(f"sample {self.uid!r}: {problem}")

    def _problem(self) -> str | None:
        if not self.uid:
            return "uid is empty"
        if self.task not in TASKS:
            return f"task {self.task!r} is not one of {', '.join(TASKS)}"
        if not self.instruction:
            return "instruction is empty"
        if self.task in ("vqa", "grounding", "entailment") and self.text is None:
            return f"a {self.task} sample needs a text"
        if self.task == "entailment" and self.label not in ENTAILMENT_LABELS:
            return f"label {self.label!r} is not one of {', '.join(ENTAILMENT_LABELS)}"
        if self.task == "grounding" and len(self.boxes) != 1:
            return f"grounding has exactly one box, found {len(self.boxes)}"
        if self.task == "detection" and not all(box.label for box in self.boxes):
            return "detection boxes need labels"
        if not all(answer.count >= 0 and 0 <= answer.confidence <= 1 for answer in self.answers):
            return "an answer's confidence is not between 0 and 1"
        if self.image.width < 1 or self.image.height < 1:
            return f"image of {self.image.width} x {self.image.height} pixels"
        if self.image.format not in IMAGE_EXTENSIONS:
            return f"image format {self.image.format!r} is not one of {', '.join(IMAGE_EXTENSIONS)}"
        for box in self.boxes:
            x0, y0, x1, y1 = box.box
            inside = 0 <= x0 < x1 <= self.image.width and 0 <= y0 < y1 <= self.image.height
            if not inside or not all(map(math.isfinite, box.box)):
                return f"box {box.box} is not inside {self.image.width} x {self.image.height}"
        return None

    def to_json(self) -> dict[str, Any]:
        """The sample as plain JSON values, with its schema version."""
        # vars() and not asdict(): the deep copy of asdict takes longer than decoding an image.
        return {
            "schema_version": SCHEMA_VERSION,
            **vars(self),
            "image": dict(vars(self.image)),
            "references": list(self.references),
            "answers": [dict(vars(answer)) for answer in self.answers],
            "boxes": [{"box": list(box.box), "label": box.label} for box in self.boxes],
        }

    @classmethod
    def from_json(cls, record: bytes | str | Mapping[str, Any]) -> Self:
        """Reads a sample from JSON text or from what json.loads gave.

        Raises:
            DataError: The text is not JSON, a field is missing, unknown or of a wrong type, the
                values contradict each other, or the schema is newer than this code.
        """
        record = load_object(record, "sample")
        check_version(record, "sample")
        where = f"sample {record.get('uid')!r}"
        fields = JsonFields(record, where, _SAMPLE)
        references = fields.items("references")
        if not all(isinstance(text, str) and writable(text) for text in references):
            raise DataError(f"{where}.references: expected a list of texts")
        return cls(
            uid=fields.text("uid"),
            task=fields.text("task"),
            source=fields.text("source"),
            split=fields.text("split"),
            image=ImageFacts.from_json(record["image"], f"{where}.image"),
            text=fields.text_or_none("text"),
            premise=fields.text_or_none("premise"),
            references=tuple(references),
            answers=tuple(
                Answer.from_json(answer, f"{where}.answers[{i}]")
                for i, answer in enumerate(fields.items("answers"))
            ),
            boxes=tuple(
                Box.from_json(box, f"{where}.boxes[{i}]")
                for i, box in enumerate(fields.items("boxes"))
            ),
            label=fields.text_or_none("label"),
            instruction=fields.text("instruction"),
        )


_BOX = field_names(Box)
_ANSWER = field_names(Answer)
_IMAGE = field_names(ImageFacts)
_SAMPLE = field_names(Sample, "schema_version")


def sample_key(position: int) -> str:
    """Name of a sample's members in a tar, without extension."""
    return f"{position:0{KEY_DIGITS}d}"


def check_version(record: Mapping[str, Any], where: str) -> None:
    """Raises DataError when a record's sample schema is newer than this code, or unknown."""
    version = record.get("schema_version")
    if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        raise DataError(f"{where}: schema version {version!r}, this code reads {SCHEMA_VERSION}")
