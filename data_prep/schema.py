"""The contract between preparation and training: samples, manifest and index, all versioned.

A prepared dataset is a folder of WebDataset shards whose samples are `<key>.jpg` + `<key>.json`,
with `index.parquet` (where each member lies), `quarantine.parquet` (what was rejected and why) and
`manifest.json`, written last: a folder without a manifest is unfinished. Every record is checked
when it is built, so a sample that exists is a valid one. Written out in
docs/reference/sample-schema.md.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from data_prep.errors import DataError
from data_prep.fields import JsonFields, canonical_json, load_object
from data_prep.instructions import TASKS

SCHEMA_VERSION: Final = 1
MANIFEST_FORMAT: Final = "prefixworks.manifest/1"
MANIFEST_NAME: Final = "manifest.json"
INDEX_NAME: Final = "index.parquet"
QUARANTINE_NAME: Final = "quarantine.parquet"
KEY_DIGITS: Final = 9
"""Digits of a sample's key, its position in the dataset."""

ENTAILMENT_LABELS: Final = ("yes", "no", "maybe")


def _names(cls: Any, *extra: str) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(cls)).union(extra)


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
        if len(corners) != 4 or not all(isinstance(c, int | float) for c in corners):
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
        if self.image.width < 1 or self.image.height < 1:
            return f"image of {self.image.width} x {self.image.height} pixels"
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
        _check_version(record, "sample")
        where = f"sample {record.get('uid')!r}"
        fields = JsonFields(record, where, _SAMPLE)
        references = fields.items("references")
        if not all(isinstance(reference, str) for reference in references):
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


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One tar file: its name, how many samples and bytes it holds, and its SHA-256."""

    name: str
    samples: int
    bytes: int
    sha256: str

    @classmethod
    def from_json(cls, record: object, where: str) -> Self:
        """Reads what json.loads gave; DataError when it does not describe a shard."""
        fields = JsonFields(record, where, _SHARD)
        return cls(
            name=fields.text("name"),
            samples=fields.integer("samples"),
            bytes=fields.integer("bytes"),
            sha256=fields.text("sha256"),
        )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a prepared dataset holds; written last, so that its presence means completeness.

    It has no timestamps and no absolute paths of the output: the same input gives the same bytes.

    Attributes:
        name: Name of the dataset.
        seed: Seed of the order of samples.
        shard_size: Records of the input that a shard was made from.
        samples: Samples in all shards.
        shards: The shards in order.
        tasks: Samples per task.
        counts: in, out, quarantined; in = out + quarantined.
        sources: What was read: reader, split, options, and the digest of its annotations.
        image: The image policy.
        index: Name and SHA-256 of the index.
        quarantine: Name and SHA-256 of the quarantine file, and its rows per reason.
    """

    name: str
    seed: int
    shard_size: int
    samples: int
    shards: tuple[ShardInfo, ...]
    tasks: dict[str, int]
    counts: dict[str, int]
    sources: tuple[dict[str, Any], ...]
    image: dict[str, Any]
    index: dict[str, Any]
    quarantine: dict[str, Any]

    @property
    def schema_version(self) -> int:
        """Version of the sample schema; what is read is always of the present version."""
        return SCHEMA_VERSION

    @property
    def digest(self) -> str:
        """'sha256:<hex>' of the manifest, hence of every shard, index row and quarantine row."""
        return "sha256:" + hashlib.sha256(canonical_json(self._body())).hexdigest()

    def _body(self) -> dict[str, Any]:
        body = dataclasses.asdict(self)
        body["shards"], body["sources"] = list(body["shards"]), list(body["sources"])
        return {"format": MANIFEST_FORMAT, "schema_version": SCHEMA_VERSION, **body}

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values, with its format and digest."""
        return {**self._body(), "digest": self.digest}

    @classmethod
    def from_json(cls, record: bytes | str | Mapping[str, Any], where: str = "manifest") -> Self:
        """Reads a manifest from JSON text or from what json.loads gave.

        Raises:
            DataError: It is not JSON, of another or newer format, incomplete, or its digest does
                not fit its content.
        """
        record = load_object(record, where)
        if record.get("format") != MANIFEST_FORMAT:
            raise DataError(
                f"{where}: format {record.get('format')!r}, this code reads {MANIFEST_FORMAT!r}"
            )
        _check_version(record, where)
        fields = JsonFields(record, where, _MANIFEST)
        manifest = cls(
            name=fields.text("name"),
            seed=fields.integer("seed"),
            shard_size=fields.integer("shard_size"),
            samples=fields.integer("samples"),
            shards=tuple(
                ShardInfo.from_json(shard, f"{where}.shards[{i}]")
                for i, shard in enumerate(fields.items("shards"))
            ),
            tasks=fields.counts("tasks"),
            counts=fields.counts("counts"),
            sources=tuple(fields.items("sources")),
            image=fields.mapping("image"),
            index=fields.mapping("index"),
            quarantine=fields.mapping("quarantine"),
        )
        if fields.text("digest") != manifest.digest:
            raise DataError(f"{where}: its digest does not fit its content; it was edited or cut")
        return manifest


_BOX = _names(Box)
_ANSWER = _names(Answer)
_IMAGE = _names(ImageFacts)
_SAMPLE = _names(Sample, "schema_version")
_SHARD = _names(ShardInfo)
_MANIFEST = _names(Manifest, "format", "schema_version", "digest")


def sample_key(position: int) -> str:
    """Name of a sample's members in a tar, without extension."""
    return f"{position:0{KEY_DIGITS}d}"


def read_manifest(folder: str | Path) -> Manifest:
    """Reads the manifest of a prepared dataset folder.

    Raises:
        DataError: There is none (the folder is missing or preparation did not end), or it is
            corrupt or newer than this code.
    """
    path = Path(folder) / MANIFEST_NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist: not a prepared dataset, or its preparation did not end"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return Manifest.from_json(content, str(path))


def _check_version(record: Mapping[str, Any], where: str) -> None:
    version = record.get("schema_version")
    if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        raise DataError(f"{where}: schema version {version!r}, this code reads {SCHEMA_VERSION}")
