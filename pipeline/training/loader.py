"""Batches of a rank, made in the background a few steps ahead.

Threads do: decoding and resizing let go of the interpreter lock, and a batch of small images costs
a few milliseconds. What a batch holds depends on its step alone, so a run continues at any step
without reading what came before.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from pipeline.errors import ConfigError, DataError
from pipeline.training.assembly import Assembler, PlacedSample
from pipeline.training.config import DataConfig
from pipeline.training.data import Batch, Collator, ShardReader
from pipeline.training.order import Component, SampleOrder, SampleRef

_STEPS_AHEAD = 3


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

    def __init__(self, readers: Sequence[ShardReader], collate: Collator, seed: int) -> None:
        self._indices = [reader.index for reader in readers]
        self.assemble = Assembler([reader.files for reader in readers], collate, seed)
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
    ) -> None:
        """Prepares to load.

        Args:
            order: Order of the samples.
            make: Makes a batch of them.
            rank: This rank.
            ranks: Number of ranks.
            batch_size: Samples of a micro-batch.
            accumulation: Micro-batches of a step.
            workers: Background threads; 0 makes batches when they are asked for.
        """
        self._order = order
        self._make = make
        self._rank, self._ranks = rank, ranks
        self._batch_size = batch_size
        self._accumulation = accumulation
        self._pool = ThreadPoolExecutor(workers, "loader") if workers else None
        self.waited_s = 0.0
        """Seconds that steps have waited for their batches so far."""

    @property
    def global_batch(self) -> int:
        """Samples of a step over all ranks."""
        return self._batch_size * self._accumulation * self._ranks

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def steps(self, first: int, last: int) -> Iterator[list[Batch]]:
        """The micro-batches of steps first to last (without it).

        Raises:
            DataError: a sample cannot be read.
        """
        if self._pool is None:
            for step in range(first, last):
                started = time.perf_counter()
                batches = [self._make(refs) for refs in self._refs(step)]
                self.waited_s += time.perf_counter() - started
                yield batches
            return
        ahead: deque[list[Future[Batch]]] = deque()
        for step in range(first, last + _STEPS_AHEAD):
            if step < last:
                ahead.append([self._pool.submit(self._make, refs) for refs in self._refs(step)])
            if step >= first + _STEPS_AHEAD or step >= last:
                if not ahead:
                    return
                yield self._result(ahead.popleft())

    def _result(self, futures: Sequence[Future[Batch]]) -> list[Batch]:
        started = time.perf_counter()
        batches = [future.result() for future in futures]
        self.waited_s += time.perf_counter() - started
        return batches

    def _refs(self, step: int) -> list[list[SampleRef]]:
        start = step * self.global_batch
        own = self._order.share(start, start + self.global_batch, self._rank, self._ranks)
        size = self._batch_size
        return [own[at : at + size] for at in range(0, len(own), size)]
