"""Numbers about a prepared dataset, gathered sample by sample in bounded memory."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from data_prep.prepared import PreparedDataset
from data_prep.schema import Sample

_MOST_TEXTS = 200_000
"""Different answers and labels that are counted; rarer ones than these are dropped."""
_SHOWN_TEXTS = 20
BOX_STEPS = 200
"""Box sides are counted in steps of 1/200 of the image."""


@dataclass
class Distribution:
    """How often each value came; exact, since the values are few: words, boxes, pixels."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, value: int) -> None:
        """Counts a value."""
        self.counts[value] += 1

    @property
    def total(self) -> int:
        """Values in all."""
        return self.counts.total()

    def quantile(self, share: float) -> int:
        """The least value that is not below the given share of all; 0 when there is none."""
        wanted = share * self.total
        seen = 0
        for value in sorted(self.counts):
            seen += self.counts[value]
            if seen >= wanted:
                return value
        return 0

    def summary(self, unit: float = 1) -> dict[str, float]:
        """Mean, least, median, 95th percentile and greatest, in units of the counted steps."""
        if not self.counts:
            return {}
        mean = sum(value * count for value, count in self.counts.items()) / self.total
        return {
            "mean": round(mean * unit, 4),
            "min": min(self.counts) * unit,
            "median": self.quantile(0.5) * unit,
            "p95": self.quantile(0.95) * unit,
            "max": max(self.counts) * unit,
        }


@dataclass
class TaskStatistics:
    """Numbers about the samples of one task."""

    samples: int = 0
    text_words: Distribution = field(default_factory=Distribution)
    """Words of the question, expression or hypothesis."""
    references: Distribution = field(default_factory=Distribution)
    """Captions of a sample."""
    reference_words: Distribution = field(default_factory=Distribution)
    answers: Distribution = field(default_factory=Distribution)
    """Distinct answers of a sample."""
    boxes: Distribution = field(default_factory=Distribution)
    """Boxes of a sample."""
    box_sides: Distribution = field(default_factory=Distribution)
    """Square root of the box's share of the image's area, in steps of 1/BOX_STEPS."""
    texts: Counter[str] = field(default_factory=Counter)
    """First answers, entailment's labels, or labels of boxes."""

    def add(self, sample: Sample) -> None:
        """Counts a sample."""
        self.samples += 1
        if sample.text is not None:
            self.text_words.add(len(sample.text.split()))
        self.references.add(len(sample.references))
        for reference in sample.references:
            self.reference_words.add(len(reference.split()))
        self.answers.add(len(sample.answers))
        self.boxes.add(len(sample.boxes))
        area = sample.image.width * sample.image.height
        for each in sample.boxes:
            x0, y0, x1, y1 = each.box
            self.box_sides.add(round(((x1 - x0) * (y1 - y0) / area) ** 0.5 * BOX_STEPS))
            if each.label:
                self.texts[each.label] += 1
        if sample.answers:
            self.texts[sample.answers[0].text] += 1
        if sample.label:
            self.texts[sample.label] += 1
        if len(self.texts) > 2 * _MOST_TEXTS:
            self.texts = Counter(dict(self.texts.most_common(_MOST_TEXTS)))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "samples": self.samples,
            "text_words": self.text_words.summary(),
            "references": self.references.summary(),
            "reference_words": self.reference_words.summary(),
            "answers": self.answers.summary(),
            "boxes": self.boxes.summary(),
            "box_sides": self.box_sides.summary(1 / BOX_STEPS),
            "most_frequent": dict(self.texts.most_common(_SHOWN_TEXTS)),
        }


class DatasetStatistics:
    """Numbers about a dataset: what its manifest and index say, and what its samples show.

    Attributes:
        tasks: By task, of the samples that were added.
        widths: Pixels of the stored images.
        heights: Pixels of the stored images.
        image_kib: Bytes of the stored images, in KiB.
        stored_images: Images that lie in the shards; fewer than samples where they are shared.
    """

    def __init__(self, dataset: PreparedDataset) -> None:
        self.manifest = dataset.manifest
        self.tasks: dict[str, TaskStatistics] = {}
        self.widths, self.heights = Distribution(), Distribution()
        self.image_kib = Distribution()
        places = dataset.index.select(["shard", "image_offset"])
        distinct = places.group_by(["shard", "image_offset"]).aggregate([])
        self.stored_images = int(distinct.num_rows)

    @property
    def seen(self) -> int:
        """Samples that were added."""
        return sum(task.samples for task in self.tasks.values())

    def add(self, sample: Sample, image_bytes: int) -> None:
        """Counts a sample and the bytes of its image."""
        self.tasks.setdefault(sample.task, TaskStatistics()).add(sample)
        self.widths.add(sample.image.width)
        self.heights.add(sample.image.height)
        self.image_kib.add(round(image_bytes / 1024))

    def to_json(self) -> dict[str, Any]:
        """Plain values; what comes from a part of the samples stands under 'seen' and 'tasks'."""
        manifest = self.manifest
        shard_bytes = [shard.bytes for shard in manifest.shards]
        return {
            "name": manifest.name,
            "digest": manifest.digest,
            "config_digest": manifest.config_digest,
            "samples": manifest.samples,
            "samples_by_task": manifest.tasks,
            "counts": manifest.counts,
            "quarantined": manifest.quarantine["reasons"],
            "store_images": manifest.store_images,
            "stored_images": self.stored_images,
            "shards": {
                "count": len(shard_bytes),
                "bytes": sum(shard_bytes),
                "min_bytes": min(shard_bytes, default=0),
                "max_bytes": max(shard_bytes, default=0),
            },
            "seen": self.seen,
            "image_width": self.widths.summary(),
            "image_height": self.heights.summary(),
            "image_kib": self.image_kib.summary(),
            "tasks": {name: task.to_json() for name, task in sorted(self.tasks.items())},
        }
