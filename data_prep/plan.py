"""What has to be done for one dataset: which records, in which order, in which shards.

The order is by SHA-256 of (seed, uid), with an image's samples together where its bytes are stored
once: a function of the samples alone, not of the order of rows in a file, of readers or of
workers. Shards are consecutive slices of it. The plan holds none of the records; each task is read
from the catalog when it is asked for.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from data_prep.catalog import Catalog, Row, open_catalog
from data_prep.catalog_build import CatalogInput, Progress
from data_prep.claim import LEDGER
from data_prep.config import ImagePolicy, PrepareConfig
from data_prep.fields import canonical_json
from data_prep.files import make_folder
from data_prep.quarantine import Rejection
from data_prep.schema import SCHEMA_VERSION
from data_prep.shard_job import ShardTask, SourceFacts
from data_prep.sources import copied, described, facts_of
from data_prep.stores import Stamp, absolute_location, open_store, range_length

_DIGEST_VERSION = "prefixworks.shard/3"
"""Part of every shard's digest: raised when the same records give other bytes than before."""


@dataclass(frozen=True, kw_only=True)
class DatasetPlan:
    """Everything that decides a dataset's bytes, and the tasks that make them, one by one.

    Attributes:
        name: Name of the dataset.
        folder: Where it is written.
        catalog: The records in their order.
        facts: What a worker has to know of the sources.
        sources: What the manifest says of the sources.
        image: How images are stored.
        seed: Seed of the order.
        shard_size: Records of a shard.
        store_images: 'repeated' or 'once_per_shard'.
        uncopied: Numbers of sources whose images a dry run leaves in their tables.
    """

    name: str
    folder: Path
    catalog: Catalog
    facts: tuple[SourceFacts, ...]
    sources: tuple[dict[str, Any], ...]
    image: ImagePolicy
    seed: int
    shard_size: int
    store_images: str
    uncopied: frozenset[int] = frozenset()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.catalog.close()

    @property
    def records(self) -> int:
        """Number of records in all tasks."""
        return self.catalog.records

    @property
    def by_task(self) -> dict[str, int]:
        """Records per task, before images are looked at."""
        return self.catalog.by_task

    @property
    def rejected(self) -> int:
        """Number of annotations that never became records."""
        return self.catalog.rejected

    @property
    def count_in(self) -> int:
        """Samples that came in: every record and every rejected annotation."""
        return self.records + self.rejected

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.records // self.shard_size)

    @property
    def policy(self) -> dict[str, Any]:
        """How images are stored, as the manifest says it."""
        return asdict(self.image)

    def rejections(self) -> Iterator[Rejection]:
        """Annotations that never became records, ordered by uid, position, reason and detail."""
        return self.catalog.rejections()

    def records_in(self, number: int) -> int:
        """Number of records of a shard."""
        return min(self.shard_size, self.records - number * self.shard_size)

    def contents(self, number: int) -> tuple[bytes, ...]:
        """The records of a shard as bytes, without a look at their images."""
        rows = self.catalog.rows(number * self.shard_size, self.shard_size)
        return tuple(row.content for row in rows)

    def task(self, number: int) -> ShardTask:
        """The whole input of a shard.

        Raises:
            IndexError: There is no such shard.
            DataError: The images cannot be reached.
        """
        if not 0 <= number < self.shards:
            raise IndexError(f"{self.name} has {self.shards} shards, asked for {number}")
        first = number * self.shard_size
        rows = self.catalog.rows(first, self.shard_size)
        return ShardTask(
            folder=str(self.folder.absolute()),
            number=number,
            first=first,
            records=tuple(row.content for row in rows),
            sources=self.facts,
            policy=self.image,
            store_once=self.store_images == "once_per_shard",
            digest=self._digest(first, rows),
        )

    @cached_property
    def image_bytes(self) -> int:
        """Bytes of the images of all records, repeated as the records repeat them.

        It looks at every image once for each shard that needs it, hence may take long.
        """
        total = 0
        for number in range(self.shards):
            rows = self.catalog.rows(number * self.shard_size, self.shard_size)
            total += sum(max(0, stamp.bytes) for stamp in self._stamps(rows))
        return total

    def _stamps(self, rows: Sequence[Row]) -> list[Stamp]:
        """State of the image of each row; each image is looked up once."""
        known: dict[tuple[int, str], Stamp] = {}
        for number, source in enumerate(self.facts):
            addresses = sorted({row.address for row in rows if row.source == number})
            if addresses:
                if number in self.uncopied:
                    stamps = [Stamp(range_length(address), "in a table") for address in addresses]
                else:
                    stamps = open_store(source.images).stamps(addresses)
                keys = ((number, address) for address in addresses)
                known.update(zip(keys, stamps, strict=True))
        return [known[row.source, row.address] for row in rows]

    def _digest(self, first: int, rows: Sequence[Row]) -> str:
        """Names the input of a shard: records, policy, and the state of the image files.

        Times of files are in it, since an image that was replaced has to be read again; they do
        not reach the shard's bytes.
        """
        head = [_DIGEST_VERSION, SCHEMA_VERSION, first, self.policy, self.store_images]
        head.append([asdict(source) for source in self.facts])
        digest = hashlib.sha256(canonical_json(head))
        for row, stamp in zip(rows, self._stamps(rows), strict=True):
            digest.update(row.content)
            digest.update(repr((stamp.bytes, stamp.state)).encode())
        return digest.hexdigest()


def plan_dataset(
    config: PrepareConfig, name: str, *, keep: bool = True, on_progress: Progress | None = None
) -> DatasetPlan:
    """Reads the annotations of a dataset and lays out its shards.

    Args:
        config: The configuration.
        name: The dataset.
        keep: Whether the catalog is left in the dataset's folder for the next run; if not, nothing
            is written there.
        on_progress: Called with a source's name and how many of its annotations were read so far.

    Raises:
        DataError: An annotation file is missing or unusable as a whole, or there are no images.
    """
    sources = tuple(config.datasets[name].sources)
    for source in sources:
        if source.images is not None:
            open_store(absolute_location(source.images))
    wanted = CatalogInput(
        sources=sources,
        described=tuple(described(source) for source in sources),
        seed=config.seed,
        store_images=config.store_images,
    )
    folder = Path(config.output_dir, name)
    ledger = folder / LEDGER
    if keep:
        make_folder(ledger)
    return DatasetPlan(
        name=name,
        folder=folder,
        catalog=open_catalog(ledger, wanted, keep=keep, on_progress=on_progress),
        facts=tuple(facts_of(source, ledger) for source in sources),
        sources=tuple(dict(each) for each in wanted.described),
        image=config.image,
        seed=config.seed,
        shard_size=config.shard_size,
        store_images=config.store_images,
        uncopied=frozenset() if keep else _uncopied(wanted, ledger),
    )


def _uncopied(wanted: CatalogInput, ledger: Path) -> frozenset[int]:
    return frozenset(
        number
        for number, source in enumerate(wanted.sources)
        if copied(source) and not (ledger / wanted.blob_name(number)).is_file()
    )
