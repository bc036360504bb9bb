"""One source of a recipe: its first annotations go the way that a shard's would, but are dropped.

The same reader, image checks and sample rules are used as in preparation, so what is rejected here
would be rejected there, for the same reason.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.config import ImagePolicy, SourceConfig
from data_prep.errors import DataError
from data_prep.images import StoredImage, store_image
from data_prep.quarantine import Reason, Rejected, Rejection
from data_prep.readers import READERS, ReadItem, SourceRecord
from data_prep.shard_job import SourceFacts, image_path, make_sample

BUDGET_S = 10.0
"""Seconds after which no more images of a source are looked at."""


@dataclass
class SourceLint:
    """What the first annotations of a source showed.

    Attributes:
        dataset: Dataset that the source belongs to.
        name: '<source name>/<split>'.
        reader: Its reader.
        seen: Annotations that were looked at.
        whole: Whether these are all of the source.
        images: Different images among them that were decoded.
        rejected: Annotations by reason code.
        examples: For each reason one rejection.
        tasks: Samples by task.
        seconds: Time that it took.
        errors: What would fail the job.
        advice: What to do.
    """

    dataset: str
    name: str
    reader: str
    seen: int = 0
    whole: bool = False
    images: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Rejection] = field(default_factory=dict)
    tasks: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    def reject(self, rejection: Rejection) -> None:
        """Counts a rejection; the first of a reason is the example."""
        self.rejected[str(rejection.reason)] += 1
        self.examples.setdefault(str(rejection.reason), rejection)


def lint_source(dataset: str, source: SourceConfig, policy: ImagePolicy, most: int) -> SourceLint:
    """Takes the first annotations of a source through everything but writing.

    Args:
        dataset: Name of the dataset, for the report.
        source: The source.
        policy: How images will be stored.
        most: Annotations to look at.
    """
    found = SourceLint(
        dataset=dataset, name=f"{source.source_name}/{source.split}", reader=source.reader
    )
    started = time.monotonic()
    if not Path(source.images).is_dir():
        found.errors.append(f"images: {source.images}: no such folder")
    for role, path in source.files().items():
        if not Path(path).is_file():
            found.errors.append(f"{role}: {path}: no such file")
    if not found.errors:
        try:
            _read(source, policy, most, found)
        except DataError as error:
            found.errors.append(str(error))
    found.seconds = time.monotonic() - started
    return found


def _read(source: SourceConfig, policy: ImagePolicy, most: int, found: SourceLint) -> None:
    facts = SourceFacts(
        name=source.source_name,
        split=source.split,
        images=source.images,
        use_premise=source.use_premise,
    )
    images: dict[str, StoredImage | Rejected] = {}
    uids: set[str] = set()
    end = None
    for item in _items(source):
        # The clock starts with the first annotation: until then a reader may load a large file.
        end = end or time.monotonic() + BUDGET_S
        if found.seen >= most or time.monotonic() > end:
            return
        found.seen += 1
        if isinstance(item, Rejection):
            found.reject(item)
            continue
        try:
            if item.uid in uids:
                raise Rejected(Reason.DUPLICATE_UID, "another sample has the same uid")
            uids.add(item.uid)
            item.to_bytes(0)
            make_sample(item, facts, _stored(source, item, policy, images))
            found.tasks[item.task] += 1
        except Rejected as rejected:
            found.reject(
                Rejection(
                    uid=item.uid,
                    position=item.position,
                    reason=rejected.reason,
                    detail=rejected.detail,
                )
            )
        found.images = sum(isinstance(image, StoredImage) for image in images.values())
    found.whole = True


def _items(source: SourceConfig) -> Iterator[ReadItem]:
    return READERS[source.reader](source)


def _stored(
    source: SourceConfig,
    record: SourceRecord,
    policy: ImagePolicy,
    images: dict[str, StoredImage | Rejected],
) -> StoredImage:
    """The stored image of a record; each is decoded once, and refused as often as it is used."""
    name = record.image
    if name not in images:
        try:
            images[name] = store_image(_image_bytes(source, record), name, policy)
        except Rejected as rejected:
            images[name] = rejected
    image = images[name]
    if isinstance(image, Rejected):
        raise image
    return image


def _image_bytes(source: SourceConfig, record: SourceRecord) -> bytes:
    path = image_path(source.images, record.image)
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise Rejected(Reason.MISSING_IMAGE, f"{record.image}: no such file") from error
    except (OSError, ValueError) as error:
        raise Rejected(Reason.UNREADABLE_IMAGE, f"{record.image}: {error}") from error
