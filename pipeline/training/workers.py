"""Background workers that make batches: threads, or processes of their own.

Threads cost nothing to start and share the open shards; decoding and resizing let go of the
interpreter lock, the rest of the work does not. Processes scale further. They come from a fork
server and not by fork, since a rank has threads and an accelerator that do not survive one. A
worker that dies breaks the executor at once, and nothing is waited for longer than a limit.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import ProcessPoolExecutor
from typing import Literal, NamedTuple

import torch

from pipeline.errors import TrainingError
from pipeline.training.assembly import Assembler, PlacedSample
from pipeline.training.daemon_threads import DaemonThreads
from pipeline.training.data import Batch

Kind = Literal["threads", "processes"]


class PendingBatch(NamedTuple):
    """A batch that is being made, and of what."""

    future: Future[Batch]
    samples: Sequence[PlacedSample]


class Workers:
    """Some workers of a rank; to be closed."""

    def __init__(self, assemble: Assembler, kind: Kind, count: int, timeout_s: float) -> None:
        """Starts the workers.

        Args:
            assemble: Makes a batch.
            kind: What the workers are.
            count: How many, at least 1.
            timeout_s: Longest that a batch is waited for.
        """
        self._assemble = assemble
        self._timeout_s = timeout_s
        self._executor: Executor
        if kind == "threads":
            self._executor = DaemonThreads(count, "loader")
        else:
            context = multiprocessing.get_context("forkserver")
            # The server imports once what every worker needs.
            context.set_forkserver_preload([__name__])
            self._executor = ProcessPoolExecutor(
                count,
                context,
                initializer=_begin,
                initargs=(assemble, dict(os.environ)),
            )
            # They take seconds to start, in which the rank builds its model.
            for _ in range(count):
                self._executor.submit(os.getpid)

    def submit(self, samples: Sequence[PlacedSample]) -> PendingBatch:
        """Asks for a batch.

        Raises:
            TrainingError: a worker is dead.
        """
        try:
            if isinstance(self._executor, ProcessPoolExecutor):
                future = self._executor.submit(_make, samples)
            else:
                future = self._executor.submit(self._assemble, samples)
        except BrokenExecutor as error:
            raise self._dead(samples) from error
        return PendingBatch(future, samples)

    def result(self, pending: PendingBatch) -> Batch:
        """Waits for a batch.

        Raises:
            DataError: a sample cannot be read.
            TrainingError: a worker is dead or hangs.
        """
        try:
            return pending.future.result(self._timeout_s)
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

    def close(self) -> None:
        """Ends the workers; what they still do is lost."""
        self._kill()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _dead(self, samples: Sequence[PlacedSample]) -> TrainingError:
        self._kill()
        return TrainingError(
            f"a loader worker died while {self._assemble.names(samples)} was to be read: killed for"
            " memory, or /dev/shm is full; fewer data.loader_workers or smaller batches need less"
        )

    def _kill(self) -> None:
        # Else leaving the interpreter waits for a process that hangs, or that ignores the signal
        # with which the executor ends it. It offers this itself from Python 3.14 on.
        processes = getattr(self._executor, "_processes", None) or {}
        for process in list(processes.values()):
            process.kill()


_assemble: Assembler | None = None
"""Of a worker process."""


def _begin(assemble: Assembler, environment: Mapping[str, str]) -> None:
    """Prepares a worker process."""
    global _assemble
    # The fork server has the environment of its own start, without what was set since, such as the
    # credentials of a store.
    os.environ.update(environment)
    _assemble = assemble
    # One thread each: more workers are what more cores are for.
    torch.set_num_threads(1)
    # What stops a job is sent to all of its processes; the rank decides when its workers end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()


def _end_with_parent() -> None:
    # A rank that is killed cannot say so, and its workers would wait for work for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _make(samples: Sequence[PlacedSample]) -> Batch:
    assert _assemble is not None, "the initializer runs first"
    return _assemble(samples)
