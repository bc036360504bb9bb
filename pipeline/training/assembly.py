"""What a loader worker does: read samples at their addresses and collate them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.features.files import FeatureFiles
from pipeline.training.augmentation import AugmentationConfig, augmented
from pipeline.training.data import Batch, Collator
from pipeline.training.index import SampleAddress
from pipeline.training.shard_files import Record, ShardFiles


class PlacedSample(NamedTuple):
    """A sample's place in the run, its data set, and where it lies there."""

    place: int
    dataset: int
    address: SampleAddress


class Assembler:
    """Makes batches of samples whose addresses are known; small to send to another process."""

    def __init__(
        self,
        datasets: Sequence[ShardFiles],
        collate: Collator,
        seed: int,
        views: AugmentationConfig | None = None,
        features: Sequence[FeatureFiles] | None = None,
    ) -> None:
        """Takes the data sets; of each, features to read in place of images, if there are any."""
        self._datasets = datasets
        self._features = features
        self._collate = collate
        self._seed = seed
        self._views = views or AugmentationConfig()

    def __call__(self, samples: Sequence[PlacedSample]) -> Batch:
        """Reads and collates; the place decides the view, and which of several right targets.

        Raises:
            DataError: a sample cannot be read.
        """
        return self._collate(
            [self._record(each) for each in samples],
            [random.Random(f"{self._seed} target {each.place}") for each in samples],
        )

    def _record(self, placed: PlacedSample) -> Record:
        files = self._datasets[placed.dataset]
        if self._features is not None:
            sample = files.record(placed.address)
            features = self._features[placed.dataset]
            return sample, features.read(placed.address.shard, sample.image.sha256)
        sample, image = files.read(placed.address)
        rng = random.Random(f"{self._seed} view {placed.place}")
        return augmented(sample, image, self._views.of(sample.task), rng)

    def names(self, samples: Sequence[PlacedSample]) -> str:
        """The shards of some samples, as error messages call them."""
        named = sorted({self._datasets[s.dataset].name(s.address.shard) for s in samples})
        return ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")
