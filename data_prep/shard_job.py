"""The work of one shard, from records to a tar and a ledger entry: what a Ray task runs.

It knows nothing of Ray. It writes into a staging folder; the run that handed out the work gives the
files their names (data_prep.dataset.commit), so work of a run that is no more changes nothing.
"""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.config import ImagePolicy
from data_prep.errors import DataError
from data_prep.files import file_state, not_writable, whole_file, write_whole
from data_prep.image_cache import ImageCache
from data_prep.images import StoredImage, stored_box
from data_prep.instructions import source_text
from data_prep.ledger import LedgerEntry, entry_or_none, ledger_path, stands
from data_prep.quarantine import Reason, Rejected, Rejection
from data_prep.readers.base import SourceRecord
from data_prep.schema import Answer, Box, Sample
from data_prep.shards import ShardWriter, shard_name


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
    store_once: bool = False
    digest: str


@dataclass(frozen=True, kw_only=True)
class BuiltShard:
    """A finished shard that may have to be given its name yet.

    Attributes:
        number: Number of the shard.
        tar: The shard's file; None when nothing was written, since nothing would have changed.
        entry: Its ledger entry's file, or None.
        samples: Samples that it holds.
        rejected: Records that it does not hold.
        images: Images that were read and stored.
        bytes: Size of the shard.
        seconds: Time that the work took.
        peak_bytes: Most memory that the worker ever held.
    """

    number: int
    tar: str | None
    entry: str | None
    samples: int
    rejected: int
    images: int
    bytes: int
    seconds: float
    peak_bytes: int


def build_shard(
    task: ShardTask, staging: Path | None = None, *, only_if_recovered: bool = False
) -> BuiltShard:
    """Makes one shard and its ledger entry.

    Args:
        task: What to make.
        staging: Folder where both are left; None gives them their names at once, for callers that
            are alone.
        only_if_recovered: Leave a shard as it is when each of its rejected records would be
            rejected again for the same reason.

    Raises:
        DataError: The output cannot be written, or a store cannot be reached.
    """
    started = time.monotonic()
    images = ImageCache(task.policy)
    if only_if_recovered:
        entry = _kept_entry(task, images)
        if entry is not None:
            return _built(task.number, None, None, entry, images, started)
    folder = Path(task.folder)
    tar = (staging or folder) / shard_name(task.number)
    path = ledger_path(folder, task.number)
    if staging is not None:
        # Two attempts at one shard may run at once, when a node was given up that still works.
        unique = f"{task.number:06d}-{time.time_ns():x}-{os.urandom(4).hex()}"
        tar, path = staging / f"{unique}.tar", staging / f"{unique}.json"
    entry = _write(task, tar, images)
    write_whole(path, entry.to_bytes())
    return _built(task.number, tar, path, entry, images, started)


def _built(
    number: int,
    tar: Path | None,
    path: Path | None,
    entry: LedgerEntry,
    images: ImageCache,
    started: float,
) -> BuiltShard:
    return BuiltShard(
        number=number,
        tar=None if tar is None else str(tar),
        entry=None if path is None else str(path),
        samples=entry.shard.samples,
        rejected=len(entry.rejections),
        images=images.loaded,
        bytes=entry.shard.bytes,
        seconds=time.monotonic() - started,
        peak_bytes=peak_bytes(),
    )


def peak_bytes() -> int:
    """Most memory that this process ever held; 0 where the system does not say.

    Not from getrusage, whose peak a process inherits from the one that started it.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def _write(task: ShardTask, tar: Path, images: ImageCache) -> LedgerEntry:
    rejections: list[Rejection] = []
    with whole_file(tar) as file:
        writer = ShardWriter(file, task.number, task.store_once)
        for position, record, made in _outcomes(task, images):
            if isinstance(made, Rejected):
                rejections.append(record.rejection(made))
            else:
                sample, image = made
                writer.add(position, sample, image.content)
        shard = writer.finish()
    try:
        state = file_state(tar.stat())
    except OSError as error:
        raise not_writable(tar, error) from error
    return LedgerEntry(
        digest=task.digest,
        shard=shard,
        state=state,
        rows=tuple(writer.rows),
        rejections=tuple(rejections),
    )


def _outcomes(
    task: ShardTask, images: ImageCache, only: frozenset[str] | None = None
) -> Iterator[tuple[int, SourceRecord, tuple[Sample, StoredImage] | Rejected]]:
    """What becomes of each record, or of those with the given uids, with its position."""
    for position, content in enumerate(task.records, start=task.first):
        number, record = SourceRecord.from_bytes(content)
        if only is not None and record.uid not in only:
            continue
        source = task.sources[number]
        try:
            image = images(source.images, record.address or record.image, record.image)
            yield position, record, (make_sample(record, source, image), image)
        except Rejected as rejected:
            yield position, record, rejected


def _kept_entry(task: ShardTask, images: ImageCache) -> LedgerEntry | None:
    """The ledger entry of a shard whose rejected records would all be rejected again."""
    folder = Path(task.folder)
    entry = entry_or_none(folder, task.number)
    if entry is None or entry.digest != task.digest or not stands(folder, entry):
        return None
    uids = frozenset(rejection.uid for rejection in entry.rejections)
    again = tuple(
        record.rejection(made)
        for _, record, made in _outcomes(task, images, uids)
        if isinstance(made, Rejected)
    )
    return entry if again == entry.rejections else None


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
