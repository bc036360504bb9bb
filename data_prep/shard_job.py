"""The work of one shard, from records to a tar and a ledger entry: what a Ray task runs.

It knows nothing of Ray. The ledger entry is written after the shard and names the input that the
shard was made from, so a later run can tell a finished shard from one that has to be made again.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.config import ImagePolicy
from data_prep.errors import DataError
from data_prep.fields import canonical_json
from data_prep.files import whole_file, write_whole
from data_prep.images import StoredImage, store_image, stored_box
from data_prep.instructions import source_text
from data_prep.manifest import ShardInfo
from data_prep.quarantine import Reason, Rejected, Rejection
from data_prep.readers.base import SourceRecord
from data_prep.schema import Answer, Box, Sample
from data_prep.shards import IndexRow, ShardWriter, shard_name

LEDGER = ".ledger"
"""Folder beside the shards that remembers what each was made from."""


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """What a worker has to know of a source."""

    name: str
    split: str
    images: str
    use_premise: bool


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """The whole input of one shard.

    Attributes:
        folder: Folder of the dataset.
        number: Number of the shard.
        first: Position of its first record in the dataset.
        records: SourceRecords as bytes, in order.
        sources: The sources that records refer to by number.
        policy: How images are stored.
        store_once: Whether equal images of the shard are stored once.
        digest: Names this input; a ledger entry with the same digest makes the task unnecessary.
    """

    folder: str
    number: int
    first: int
    records: tuple[bytes, ...]
    sources: tuple[SourceFacts, ...]
    policy: ImagePolicy
    store_once: bool
    digest: str


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """What a finished shard was made from and what it holds."""

    digest: str
    shard: ShardInfo
    rows: tuple[IndexRow, ...]
    rejections: tuple[Rejection, ...]

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(asdict(self))

    @classmethod
    def from_bytes(cls, content: bytes) -> "LedgerEntry":
        """Reads an entry; ValueError, TypeError or KeyError when it is damaged."""
        record = json.loads(content)
        return cls(
            digest=record["digest"],
            shard=ShardInfo(**record["shard"]),
            rows=tuple(IndexRow(**row) for row in record["rows"]),
            rejections=tuple(
                Rejection(**{**row, "reason": Reason(row["reason"])})
                for row in record["rejections"]
            ),
        )


def ledger_path(folder: Path, number: int) -> Path:
    """Where the ledger entry of a shard lies."""
    return folder / LEDGER / f"{shard_name(number)}.json"


def build_shard(task: ShardTask) -> tuple[int, int]:
    """Makes one shard and its ledger entry.

    Returns:
        Samples written and samples rejected.

    Raises:
        DataError: The output cannot be written.
    """
    folder = Path(task.folder)
    rejections: list[Rejection] = []
    images: dict[Path, StoredImage] = {}
    with whole_file(folder / shard_name(task.number)) as file:
        writer = ShardWriter(file, task.number, task.store_once)
        for position, content in enumerate(task.records, start=task.first):
            number, record = SourceRecord.from_bytes(content)
            source = task.sources[number]
            try:
                image = _image(source, record, task.policy, images)
                writer.add(position, make_sample(record, source, image), image.content)
            except Rejected as rejected:
                rejections.append(
                    Rejection(
                        uid=record.uid,
                        position=record.position,
                        reason=rejected.reason,
                        detail=rejected.detail,
                    )
                )
        shard = writer.finish()
    entry = LedgerEntry(
        digest=task.digest, shard=shard, rows=tuple(writer.rows), rejections=tuple(rejections)
    )
    write_whole(ledger_path(folder, task.number), entry.to_bytes())
    return shard.samples, len(rejections)


def image_path(images: str, name: str) -> Path:
    """The file of an image; Rejected when its name leads out of the folder of images."""
    parts = name.replace("\\", "/").split("/")
    if not name or name.startswith("/") or ".." in parts or "\0" in name:
        raise Rejected(Reason.BAD_IMAGE_NAME, f"{name!r:.80} is not a name inside the folder")
    return Path(images, name)


def _image(
    source: SourceFacts, record: SourceRecord, policy: ImagePolicy, images: dict[Path, StoredImage]
) -> StoredImage:
    path = image_path(source.images, record.image)
    if path not in images:
        images[path] = store_image(_read(path, record.image), record.image, policy)
    return images[path]


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise Rejected(Reason.MISSING_IMAGE, f"{name}: no such file") from error
    except (OSError, ValueError) as error:
        words = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise Rejected(Reason.UNREADABLE_IMAGE, f"{name}: {words}") from error


def make_sample(record: SourceRecord, source: SourceFacts, image: StoredImage) -> Sample:
    """Joins a record with its stored image; Rejected when the two do not fit together."""
    facts = image.facts
    size = (facts.original_width, facts.original_height)
    if record.boxes and record.size not in (None, size):
        raise Rejected(
            Reason.SIZE_MISMATCH, f"boxes refer to {record.size} pixels, the image has {size}"
        )
    boxes = [Box(box=stored_box(box, image), label=label) for box, label in record.boxes]
    # Turning or clipping can change which box is left; the order is of the stored image.
    boxes.sort(key=lambda box: (box.box, box.label or ""))
    premise = record.premise if source.use_premise else None
    try:
        return Sample(
            uid=record.uid,
            task=record.task,
            source=source.name,
            split=source.split,
            image=facts,
            text=record.text,
            premise=record.premise,
            references=record.references,
            answers=tuple(
                Answer(text=text, count=count, confidence=min(1.0, 0.3 * count))
                for text, count in record.answers
            ),
            boxes=tuple(boxes),
            label=record.label,
            instruction=source_text(record.task, record.text, premise),
        )
    except DataError as error:
        raise Rejected(Reason.MALFORMED_ANNOTATION, str(error)) from error
