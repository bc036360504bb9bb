"""Background workers that make batches: threads, or processes of their own.

Threads cost nothing to start and share the open shards; decoding and resizing let go of the
interpreter lock, the rest of the work does not. Processes scale further. A worker that dies is an
error at once, and nothing is waited for longer than a limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Literal, NamedTuple

from pipeline.errors import TrainingError
from pipeline.training.assembly import Assembler, PlacedSample
from pipeline.training.daemon_threads import DaemonThreads
from pipeline.training.data import Batch
from pipeline.training.worker_processes import WorkerProcesses

Kind = Literal["threads", "processes"]


class PendingBatch(NamedTuple):
    """A batch that is being made, and of what."""

    future: Future[Batch]
    samples: Sequence[PlacedSample]


class Workers:
    """Some workers of a rank; to be closed."""

    def __init__(
        self, assemble: Assembler, kind: Kind, count: int, timeout_s: float, *, pin: bool = False
    ) -> None:
        """Starts the workers.

        Args:
            assemble: Makes a batch.
            kind: What the workers are.
            count: How many, at least 1.
            timeout_s: Longest that a batch is waited for.
            pin: Whether batches go into pinned memory. Threads do that themselves; what comes from
                another process is pinned when it is here.
        """
        self._assemble = assemble
        self._timeout_s = timeout_s
        self._pin = pin
        self._pool: DaemonThreads | WorkerProcesses
        if kind == "threads":
            self._pool = DaemonThreads(count, "loader")
        else:
            # They take seconds to start, in which the rank builds its model.
            self._pool = WorkerProcesses(assemble, count, [__name__])

    def submit(self, samples: Sequence[PlacedSample]) -> PendingBatch:
        """Asks for a batch."""
        if isinstance(self._pool, WorkerProcesses):
            return PendingBatch(self._pool.submit(samples), samples)
        return PendingBatch(self._pool.submit(self._make_here, samples), samples)

    def result(self, pending: PendingBatch) -> Batch:
        """Waits for a batch.

        Raises:
            DataError: a sample cannot be read.
            TrainingError: a worker is dead or hangs.
        """
        try:
            batch = pending.future.result(self._timeout_s)
        except FutureTimeoutError as error:
            if pending.future.done():  # the work itself ran into a timeout
                raise
            self._kill()
            raise TrainingError(
                f"no batch for {self._timeout_s:g} s out of {self._assemble.names(pending.samples)}"
                ": the storage hangs or is slow; data.loader_timeout_s allows more"
            ) from error
        except BrokenExecutor as error:
            raise self._dead(pending.samples) from error
        if self._pin and isinstance(self._pool, WorkerProcesses):
            batch = batch.pinned()
        return batch

    def _make_here(self, samples: Sequence[PlacedSample]) -> Batch:
        batch = self._assemble(samples)
        return batch.pinned() if self._pin else batch

    def close(self) -> None:
        """Ends the workers; what they still do is lost."""
        if isinstance(self._pool, WorkerProcesses):
            self._pool.close()
        else:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _dead(self, samples: Sequence[PlacedSample]) -> TrainingError:
        self._kill()
        return TrainingError(
            f"a loader worker died while {self._assemble.names(samples)} was to be read: killed for"
            " memory, or /dev/shm is full; fewer data.loader_workers or smaller batches need less"
        )

    def _kill(self) -> None:
        # A process that hangs would not end by itself; a thread is left behind.
        if isinstance(self._pool, WorkerProcesses):
            self._pool.kill()
