"""Batches of a rank, made in the background a few steps ahead.

What a batch holds depends on its step alone, so the whole state of a loader is the number of the
next step, and a run continues there without reading what came before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from data_prep.stores import is_remote
from pipeline.errors import ConfigError, DataError
from pipeline.features.files import FeatureFiles
from pipeline.training.assembly import Assembler, PlacedSample
from pipeline.training.augmentation import AugmentationConfig
from pipeline.training.cut_texts import CutTexts
from pipeline.training.data import Batch, Collator, ShardReader
from pipeline.training.data_config import DataConfig
from pipeline.training.order import Component, SampleOrder, SampleRef
from pipeline.training.shard_cache import GB, FileCache, default_cache_dir
from pipeline.training.workers import Kind, PendingBatch, Workers


def open_data_sets(locations: Sequence[str], config: DataConfig) -> list[ShardReader]:
    """Opens data sets, those in object stores through the configured cache; to be closed.

    Raises:
        DataError: one is missing or damaged, or its store cannot be reached.
        ConfigError: the cache's folder cannot be written.
    """
    cache = None
    if any(is_remote(location) for location in locations):
        folder = Path(config.cache_dir) if config.cache_dir else default_cache_dir()
        cache = FileCache(folder, int(config.cache_gb * GB))
    return [ShardReader(location, cache) for location in locations]


def check_cache(readers: Sequence[ShardReader], config: DataConfig, nodes: int) -> None:
    """Refuses a cache in which every batch would remove what the next one needs.

    Args:
        readers: All training data.
        config: Streams, and the bound of the cache.
        nodes: Machines that the ranks run on; each reads its share of the streams.

    Raises:
        ConfigError: one shard for each stream does not fit.
    """
    shards = [
        shard.bytes for reader in readers if reader.remote for shard in reader.manifest.shards
    ]
    streams = -(-config.streams // nodes)
    needed = sum(sorted(shards, reverse=True)[:streams])
    if needed > config.cache_gb * GB:
        raise ConfigError(
            f"data.cache_gb = {config.cache_gb:g}: {streams} streams read from as many shards at"
            f" once, which need {needed / GB:.3g}; give more, or prepare smaller shards"
        )


def pins_memory(wanted: bool | None, device: torch.device) -> bool:
    """Whether batches go into pinned memory, from which only CUDA copies.

    Raises:
        ConfigError: it is asked for, and the ranks compute elsewhere.
    """
    if wanted and device.type != "cuda":
        raise ConfigError(f"data.pin_memory = True: the ranks compute on {device.type}, not CUDA")
    return device.type == "cuda" if wanted is None else wanted


def build_order(readers: Sequence[ShardReader], config: DataConfig, seed: int) -> SampleOrder:
    """The order of the samples of some data sets.

    Raises:
        DataError: a wanted task has no samples.
    """
    wanted = sorted({task for reader in readers for task in reader.manifest.tasks})
    if config.tasks is not None:
        wanted = sorted(config.tasks)
    if config.task_weights is None:
        components = [_component(readers, wanted, 1.0)]
    else:
        stray = sorted(set(config.task_weights) - set(wanted))
        if stray:
            raise DataError(f"data.task_weights names {stray[0]!r}; tasks here: {wanted}")
        components = [
            _component(readers, [task], weight)
            for task, weight in sorted(config.task_weights.items())
            if weight > 0
        ]
    try:
        return SampleOrder(components, seed=seed, streams=config.streams, uneven=config.uneven)
    except ValueError as error:
        raise ConfigError(f"data.streams = {config.streams}: {error}") from error


def _component(readers: Sequence[ShardReader], tasks: Sequence[str], weight: float) -> Component:
    found = {task for reader in readers for task in reader.index.task_names}
    missing = sorted(set(tasks) - found)
    if missing:
        folders = ", ".join(str(reader.folder) for reader in readers)
        raise DataError(f"no samples of task {missing[0]!r} in {folders}")
    blocks = [
        (dataset, rows)
        for dataset, reader in enumerate(readers)
        for rows in reader.index.blocks(set(tasks))
    ]
    return Component(tuple(blocks), weight)


class BatchMaker:
    """Makes the batch of some places of a run."""

    def __init__(
        self,
        readers: Sequence[ShardReader],
        collate: Collator,
        seed: int,
        views: AugmentationConfig | None = None,
        features: Sequence[FeatureFiles] | None = None,
    ) -> None:
        self._indices = [reader.index for reader in readers]
        files = [reader.files for reader in readers]
        self.assemble = Assembler(files, collate, seed, views, features)
        """Does the work, here or in another process."""

    def locate(self, refs: Sequence[SampleRef]) -> list[PlacedSample]:
        """Looks up where samples lie."""
        return [
            PlacedSample(ref.place, ref.dataset, self._indices[ref.dataset].address(ref.row))
            for ref in refs
        ]

    def __call__(self, refs: Sequence[SampleRef]) -> Batch:
        """Reads and collates."""
        return self.assemble(self.locate(refs))


class Loader:
    """The micro-batches of each step of a rank, in order."""

    def __init__(
        self,
        order: SampleOrder,
        make: BatchMaker,
        *,
        rank: int,
        ranks: int,
        batch_size: int,
        accumulation: int,
        workers: int,
        kind: Kind = "threads",
        timeout_s: float = 300.0,
        steps_ahead: int = 3,
        pin: bool = False,
    ) -> None:
        """Prepares to load.

        Args:
            order: Order of the samples.
            make: Makes a batch of them.
            rank: This rank.
            ranks: Number of ranks.
            batch_size: Samples of a micro-batch.
            accumulation: Micro-batches of a step.
            workers: Background workers; 0 makes batches when they are asked for.
            kind: What the workers are.
            timeout_s: Longest that a worker's batch is waited for.
            steps_ahead: Steps whose batches the workers make before they are asked for.
            pin: Whether workers' batches go into pinned memory.
        """
        self._order = order
        self._make = make
        self._rank, self._ranks = rank, ranks
        self._batch_size = batch_size
        self._accumulation = accumulation
        self._workers: Workers | None = None
        if workers:
            self._workers = Workers(make.assemble, kind, workers, timeout_s, pin=pin)
        # Enough for every worker to have a batch while one is waited for.
        self._steps_ahead = max(steps_ahead, 1 + -(-workers // accumulation))
        self.cut_texts = CutTexts()
        """What the steps so far have learnt from."""

    @property
    def global_batch(self) -> int:
        """Samples of a step over all ranks."""
        return self._batch_size * self._accumulation * self._ranks

    def first(self, samples: int) -> Batch:
        """The first samples of the run as one batch, the same on every rank.

        Raises:
            DataError: a sample cannot be read.
        """
        return self._make(self._order.share(0, samples, 0, 1))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._workers is not None:
            self._workers.close()

    def steps(self, first: int, last: int) -> Iterator[list[Batch]]:
        """The micro-batches of steps first to last (without it).

        Raises:
            DataError: a sample cannot be read.
            TrainingError: a worker is dead or hangs.
        """
        workers = self._workers
        if workers is None:
            for step in range(first, last):
                yield self._counted([self._make(refs) for refs in self._refs(step)])
            return
        coming = iter(range(first, last))
        ahead = deque(self._submit(workers, step) for step in islice(coming, self._steps_ahead))
        while ahead:
            batches = [workers.result(each) for each in ahead.popleft()]
            ahead.extend(self._submit(workers, step) for step in islice(coming, 1))
            yield self._counted(batches)

    def _counted(self, batches: list[Batch]) -> list[Batch]:
        for batch in batches:
            self.cut_texts.add(batch)
        return batches

    def _submit(self, workers: Workers, step: int) -> list[PendingBatch]:
        return [workers.submit(self._make.locate(refs)) for refs in self._refs(step)]

    def _refs(self, step: int) -> list[list[SampleRef]]:
        start = step * self.global_batch
        own = self._order.share(start, start + self.global_batch, self._rank, self._ranks)
        size = self._batch_size
        return [own[at : at + size] for at in range(0, len(own), size)]
