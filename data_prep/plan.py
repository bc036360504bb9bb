"""What has to be done for one dataset: which records, in which order, in which shards.

The order is by SHA-256 of (seed, uid): a function of the samples alone, not of the order of rows
in a file, of readers or of workers. Shards are consecutive slices of it.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from data_prep.config import ImagePolicy, PrepareConfig, SourceConfig
from data_prep.errors import DataError
from data_prep.fields import canonical_json
from data_prep.quarantine import Reason, Rejected, Rejection
from data_prep.readers import READERS
from data_prep.readers.base import SourceRecord
from data_prep.schema import SCHEMA_VERSION
from data_prep.shard_job import ShardTask, SourceFacts
from data_prep.shards import file_sha256
from data_prep.stores import image_path

_DIGEST_VERSION = "prefixworks.shard/1"
"""Part of every shard's digest: raised when the same records give other bytes than before."""


@dataclass(frozen=True, kw_only=True)
class DatasetPlan:
    """Everything that decides a dataset's bytes, and the tasks that make them.

    Attributes:
        name: Name of the dataset.
        folder: Where it is written.
        records: Number of records in all tasks.
        by_task: Records per task, before images are looked at.
        image_bytes: Bytes of the image files of all records, repeated as the records repeat them.
        sources: What the manifest says of the sources.
        policy: How images are stored, as the manifest says it.
        seed: Seed of the order.
        shard_size: Records of a shard.
    """

    name: str
    folder: Path
    records: int
    by_task: dict[str, int]
    image_bytes: int
    sources: tuple[dict[str, Any], ...]
    policy: dict[str, Any]
    seed: int
    shard_size: int
    _tasks: tuple[ShardTask, ...]
    _rejections: tuple[Rejection, ...]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self._tasks)

    @property
    def rejected(self) -> int:
        """Number of annotations that never became records."""
        return len(self._rejections)

    @property
    def count_in(self) -> int:
        """Samples that came in: every record and every rejected annotation."""
        return self.records + self.rejected

    def task(self, number: int) -> ShardTask:
        """The task of one shard."""
        return self._tasks[number]

    def rejections(self) -> Iterator[Rejection]:
        """Annotations that never became records, in the order of reading."""
        return iter(self._rejections)


def plan_dataset(
    config: PrepareConfig,
    name: str,
    *,
    keep: bool = True,
    on_progress: Callable[[str, int], None] | None = None,
) -> DatasetPlan:
    """Reads the annotations of a dataset and lays out its shards.

    Args:
        config: What to prepare.
        name: Which of its datasets.
        keep: Whether something may be written into the dataset's folder; nothing is so far.
        on_progress: Called with a source's name and how many of its annotations were read so far.

    Raises:
        DataError: An annotation file is missing or unusable as a whole.
    """
    sources = config.datasets[name].sources
    for source in sources:
        if not Path(source.images).is_dir():
            raise DataError(f"{source.images}: no such folder of images")
    folder = Path(config.output_dir, name)
    facts = tuple(_facts(source) for source in sources)
    rejections: list[Rejection] = []
    by_task: Counter[str] = Counter()
    ordered = _ordered(sources, config.seed, rejections, by_task, on_progress)
    stats = _ImageStats()
    tasks = []
    for number, first in enumerate(range(0, len(ordered), config.shard_size)):
        entries = ordered[first : first + config.shard_size]
        store_once = config.store_images == "once_per_shard"
        digest = _digest(entries, first, facts, config.image, store_once, stats)
        tasks.append(
            ShardTask(
                folder=str(folder.absolute()),
                number=number,
                first=first,
                records=tuple(entry.content for entry in entries),
                sources=facts,
                policy=config.image,
                store_once=store_once,
                digest=digest,
            )
        )
    return DatasetPlan(
        name=name,
        folder=folder,
        records=len(ordered),
        by_task=dict(sorted(by_task.items())),
        image_bytes=stats.bytes_seen,
        sources=tuple(_described(source) for source in sources),
        policy=asdict(config.image),
        seed=config.seed,
        shard_size=config.shard_size,
        _tasks=tuple(tasks),
        _rejections=tuple(rejections),
    )


def _facts(source: SourceConfig) -> SourceFacts:
    return SourceFacts(
        name=source.source_name,
        split=source.split,
        images=str(Path(source.images).absolute()),
        use_premise=source.use_premise,
    )


def _described(source: SourceConfig) -> dict[str, Any]:
    """A source for the manifest: by content and not by path, so that it fits any machine."""
    files = {
        role: {"name": Path(path).name, "sha256": file_sha256(Path(path))}
        for role, path in source.files().items()
    }
    return {
        "name": source.source_name,
        "reader": source.reader,
        "split": source.split,
        "image_name": source.image_name,
        "use_premise": source.use_premise,
        "files": files,
    }


class _Entry(NamedTuple):
    """A record in its order; what is needed of it again is kept beside its bytes."""

    rank: bytes
    content: bytes
    source: int
    image: str


def _ordered(
    sources: list[SourceConfig],
    seed: int,
    rejections: list[Rejection],
    by_task: Counter[str],
    on_progress: Callable[[str, int], None] | None,
) -> list[_Entry]:
    """Reads all sources and puts their records in order; rejections and counts are filled in."""
    entries: list[_Entry] = []
    for number, source in enumerate(sources):
        for count, item in enumerate(READERS[source.reader](source), start=1):
            if on_progress is not None and count % 1000 == 0:
                on_progress(source.source_name, count)
            if isinstance(item, Rejection):
                rejections.append(item)
                continue
            try:
                rank, content = _rank(seed, item.uid), item.to_bytes(number)
            except Rejected as rejected:
                rejections.append(_rejection(item, rejected))
                continue
            entries.append(_Entry(rank, content, number, item.image))
            by_task[item.task] += 1
    entries.sort()
    return list(_distinct(entries, rejections, by_task))


def _rank(seed: int, uid: str) -> bytes:
    try:
        return hashlib.sha256(f"{seed}:{uid}".encode()).digest()
    except UnicodeEncodeError as error:
        raise Rejected(Reason.BAD_TEXT, str(error)) from error


def _distinct(
    entries: list[_Entry], rejections: list[Rejection], by_task: Counter[str]
) -> Iterator[_Entry]:
    """Drops records whose uid was there already; equal uids are neighbours in the order."""
    last = b""
    for entry in entries:
        if entry.rank == last:
            _, record = SourceRecord.from_bytes(entry.content)
            again = Rejected(Reason.DUPLICATE_UID, "another sample has the same uid")
            rejections.append(_rejection(record, again))
            by_task[record.task] -= 1
            continue
        last = entry.rank
        yield entry


def _rejection(record: SourceRecord, rejected: Rejected) -> Rejection:
    return Rejection(
        uid=record.uid,
        position=record.position,
        reason=rejected.reason,
        detail=rejected.detail,
    )


class _ImageStats:
    """Size and time of image files, each looked up once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[int, int]] = {}
        self.bytes_seen = 0

    def __call__(self, images: str, name: str) -> tuple[int, int]:
        key = (images, name)
        if key not in self._known:
            try:
                found = image_path(images, name).stat()
                self._known[key] = (found.st_size, found.st_mtime_ns)
            except (OSError, ValueError, Rejected):
                # Whoever builds the shard says what is wrong; here it only must not look done.
                self._known[key] = (-1, -1)
        self.bytes_seen += max(0, self._known[key][0])
        return self._known[key]


def _digest(
    entries: list[_Entry],
    first: int,
    sources: tuple[SourceFacts, ...],
    policy: ImagePolicy,
    store_once: bool,
    stats: _ImageStats,
) -> str:
    """Names the input of a shard: records, policy, and the state of the image files.

    Times of files are in it, since an image that was replaced has to be read again; they do not
    reach the shard's bytes.
    """
    head = [_DIGEST_VERSION, SCHEMA_VERSION, first, asdict(policy), store_once]
    head.append([asdict(source) for source in sources])
    digest = hashlib.sha256(canonical_json(head))
    for entry in entries:
        digest.update(entry.content)
        digest.update(repr(stats(sources[entry.source].images, entry.image)).encode())
    return digest.hexdigest()
