"""What a preparation says before and after: the plan, what changed, and the table at the end."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_prep.changes import changes
from data_prep.config import ImagePolicy
from data_prep.dataset import Survey
from data_prep.images import store_image
from data_prep.manifest import Manifest
from data_prep.plan import DatasetPlan
from data_prep.quarantine import Rejected
from data_prep.readers.base import SourceRecord
from data_prep.shard_job import BuiltShard, ShardTask
from data_prep.stores import open_store, range_length

_ESTIMATE_SHARDS, _ESTIMATE_IMAGES = 8, 8
"""Shards that an estimate looks into, and images of each."""
_FACTS_BYTES = 350
"""What a sample's JSON holds beyond its record's: facts of the image and the instruction."""


@dataclass(kw_only=True)
class Work:
    """What was done for a dataset, added up from its shards."""

    made: int = 0
    images: int = 0
    samples: int = 0
    rejected: int = 0
    peak_bytes: int = 0
    seconds: float = 0.0
    """Wall time of the whole dataset."""
    building_s: float = 0.0
    """Wall time of building shards."""
    finished: bool = False
    """Whether the files of the whole dataset had to be written."""

    def add(self, built: BuiltShard) -> None:
        """Counts a shard."""
        self.made += built.tar is not None
        self.images += built.images
        self.samples += built.samples
        self.rejected += built.rejected
        self.peak_bytes = max(self.peak_bytes, built.peak_bytes)


def describe(plan: DatasetPlan, found: Survey) -> str:
    """What a run would do, in a few lines."""
    tasks = ", ".join(f"{count} {task}" for task, count in plan.by_task.items())
    stored = estimated_bytes(plan)
    output = (
        "unknown, no image that was tried can be read"
        if stored is None
        else f"about {stored[0] / 1e6:.1f} MB (an estimate from {stored[1]} images)"
    )
    lines = (
        f"{plan.name} -> {plan.folder}",
        f"  samples   {plan.records} ({tasks}), {plan.rejected} annotations rejected",
        f"  shards    {plan.shards} of {plan.shard_size}, {found.kept} finished already",
        f"  images    {plan.image_bytes / 1e6:.1f} MB in the sources, {_fate(plan.image)}",
        f"  output    {output}",
        *(f"  {line}" for line in outlook(plan, found)),
    )
    return "\n".join(lines)


def _fate(image: ImagePolicy) -> str:
    if image.store == "keep":
        return "kept as they are"
    size = "resized to" if image.upscale else "fitted to at most"
    return f"{size} {image.max_side} px"


def outlook(plan: DatasetPlan, found: Survey) -> Iterator[str]:
    """Why shards that were there already are made again; nothing for a new dataset."""
    if found.changed:
        differs = changes(plan)
        yield (
            f"changed   {differs.new} samples are in no finished shard, {differs.gone} of theirs "
            f"are gone; {len(found.todo)} of {plan.shards} shards are made"
        )
        if differs.new or differs.gone:
            yield (
                "          samples are ordered by a hash, so new and gone ones move the borders of "
                "all shards behind them"
            )
        else:
            yield "          the same samples with other settings, annotations or images"
    if found.damaged:
        yield f"damaged   {found.damaged} shards are not what they were, they are made again"


def estimated_bytes(plan: DatasetPlan) -> tuple[int, int] | None:
    """Bytes of the output from a few images, and how many those were; None when none is good.

    Raises:
        DataError: A store cannot be reached.
    """
    step = max(1, plan.shards // _ESTIMATE_SHARDS)
    total, tried, good = 0.0, 0, 0
    for number in range(0, plan.shards, step)[:_ESTIMATE_SHARDS]:
        task = plan.task(number)
        share = _distinct_share(task) if task.store_once else 1.0
        every = max(1, len(task.records) // _ESTIMATE_IMAGES)
        for content in task.records[::every][:_ESTIMATE_IMAGES]:
            tried += 1
            size = _stored_bytes(plan, task, content)
            if size is not None:
                good += 1
                total += share * _member_bytes(size) + _member_bytes(len(content) + _FACTS_BYTES)
    # Two blocks of zeros end a shard, and half a record fills it up on average.
    ends = plan.shards * (2 * tarfile.BLOCKSIZE + tarfile.RECORDSIZE // 2)
    return (round(total / tried * plan.records) + ends, good) if good else None


def _member_bytes(size: int) -> int:
    """A member of a tar: its header, and its bytes in whole blocks."""
    return tarfile.BLOCKSIZE * (1 + -(-size // tarfile.BLOCKSIZE))


def _distinct_share(task: ShardTask) -> float:
    # Sources may share a store, and then their images.
    images = {
        (task.sources[source].images, record.address or record.image)
        for source, record in map(SourceRecord.from_bytes, task.records)
    }
    return len(images) / len(task.records)


def _stored_bytes(plan: DatasetPlan, task: ShardTask, content: bytes) -> int | None:
    number, record = SourceRecord.from_bytes(content)
    if number in plan.uncopied:
        # Nothing but its length is known yet, and most images are stored as they are or smaller.
        return range_length(record.address or "")
    try:
        raw = open_store(task.sources[number].images).read(record.address or record.image)
        return len(store_image(raw, record.image, task.policy).content)
    except Rejected:
        return None


def summary_line(plan: DatasetPlan, manifest: Manifest, work: Work) -> str:
    """The one line of a finished dataset."""
    counts = manifest.counts
    what = (
        f"{plan.name}: {counts['out']} samples in {len(manifest.shards)} shards, "
        f"{counts['quarantined']} of {counts['in']} quarantined"
    )
    if not work.finished:
        return f"{what}; nothing to do"
    return f"{what}; {work.made} shards made, {plan.shards - work.made} kept, {work.seconds:.1f} s"


def print_table(console: Console, rows: dict[str, tuple[Manifest, Work]]) -> None:
    """The table at the end, one row a dataset."""
    table = Table(title="prepared")
    table.add_column("dataset", overflow="fold")
    for column in ("in", "out", "quarantined", "shards", "MB", "s", "images/s"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("reasons", overflow="fold")
    for name, (manifest, work) in rows.items():
        reasons = manifest.quarantine["reasons"]
        rate = work.images / work.building_s if work.building_s else 0
        table.add_row(
            escape(name),
            *(str(manifest.counts[part]) for part in ("in", "out", "quarantined")),
            str(len(manifest.shards)),
            f"{sum(shard.bytes for shard in manifest.shards) / 1e6:.1f}",
            f"{work.seconds:.1f}",
            f"{rate:.0f}" if rate else "-",
            "\n".join(f"{count} {reason}" for reason, count in reasons.items()) or "-",
        )
    console.print(table)
