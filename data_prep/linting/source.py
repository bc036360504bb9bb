"""One source of a recipe: its first annotations go the way that a shard's would, but are dropped.

The same reader, image checks and sample rules are used as in preparation, so what is rejected here
would be rejected there, for the same reason.
"""

import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.config import ImagePolicy, SourceConfig
from data_prep.errors import DataError
from data_prep.image_cache import ImageCache
from data_prep.quarantine import Reason, Rejected, Rejection
from data_prep.readers import READERS, Workspace
from data_prep.shard_job import make_sample
from data_prep.sources import facts_of, unreachable

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
    found.errors.extend(unreachable(source))
    if not found.errors:
        try:
            _read(source, policy, most, found)
        except DataError as error:
            found.errors.append(str(error))
    found.seconds = time.monotonic() - started
    return found


def _read(source: SourceConfig, policy: ImagePolicy, most: int, found: SourceLint) -> None:
    images = ImageCache(policy)
    uids: set[str] = set()
    end = None
    with tempfile.TemporaryDirectory(prefix="prefixworks-lint-") as name:
        folder = Path(name)
        facts = facts_of(source, folder)
        work = Workspace(folder=folder, blob=folder / "images.blob", blob_grows=True)
        for item in READERS[source.reader](source, work):
            # The clock starts with the first annotation: until then a reader may read much.
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
                make_sample(
                    item, facts, images(facts.images, item.address or item.image, item.image)
                )
                found.tasks[item.task] += 1
            except Rejected as rejected:
                found.reject(item.rejection(rejected))
            found.images = images.loaded
    found.whole = True
