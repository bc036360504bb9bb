"""Loader workers as processes, each behind a thread and a pipe of its own.

The standard library's pool of processes shares locks by name, and a run that is killed as a whole
leaves those names in /dev/shm. A pipe has no name. Batches come back as torch's shared memory,
which loses its name as soon as it has one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import TYPE_CHECKING

import torch

from pipeline.training.daemon_threads import DaemonThreads
from pipeline.training.signals import STOP_SIGNALS

if TYPE_CHECKING:
    from pipeline.training.assembly import Assembler, PlacedSample
    from pipeline.training.data import Batch

_PATIENCE_S = 2.0
"""For a worker whose rank is gone."""


class WorkerProcesses:
    """Some processes that make batches; to be closed.

    They come from a fork server and not by fork, since a rank has threads and an accelerator that
    do not survive one.
    """

    def __init__(self, assemble: Assembler, count: int, preload: Sequence[str]) -> None:
        """Starts the processes, and does not wait until they are there.

        Args:
            assemble: Makes a batch.
            count: How many, at least 1.
            preload: Modules that the fork server imports, once for all.
        """
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))
        self._assemble = assemble
        self._own = threading.local()
        self._lock = threading.Lock()
        self._processes: list[ForkServerProcess] = []
        self._closed = False
        self._threads = DaemonThreads(count, "loader", self._start_own, self._end_own)

    def submit(self, samples: Sequence[PlacedSample]) -> Future[Batch]:
        """Asks for a batch; the result raises BrokenExecutor where its worker died."""
        return self._threads.submit(self._ask, samples)

    def close(self) -> None:
        """Ends the processes; what they still do is lost."""
        # Those that are not busy for long end by themselves, and clear away what they made.
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.kill()

    def kill(self) -> None:
        """Ends the processes, also such that hang."""
        with self._lock:
            self._closed = True
            for process in self._processes:
                process.kill()

    def _start_own(self) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, self._assemble, dict(os.environ)), daemon=True
        )
        # Without the lock: it takes until the fork server has imported everything.
        process.start()
        theirs.close()
        self._own.pipe, self._own.process = ours, process
        with self._lock:
            self._processes.append(process)
            if self._closed:
                process.kill()

    def _end_own(self) -> None:
        self._own.pipe.close()
        self._own.process.join()

    def _ask(self, samples: Sequence[PlacedSample]) -> Batch:
        pipe: Connection[Sequence[PlacedSample], Batch | Exception] = self._own.pipe
        try:
            pipe.send(samples)
            answer = pipe.recv()
        except (EOFError, OSError) as error:
            raise BrokenProcessPool("a loader worker died") from error
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(
    pipe: Connection[Batch | Exception, Sequence[PlacedSample]],
    assemble: Assembler,
    environment: Mapping[str, str],
) -> None:
    """A worker process, until its rank ends."""
    # The fork server has the environment of its own start, without what was set since, such as the
    # credentials of a store.
    os.environ.update(environment)
    # One thread each: more workers are what more cores are for.
    torch.set_num_threads(1)
    # What stops a job is sent to all of its processes; the rank decides when its workers end.
    for number in (signal.SIGINT, *STOP_SIGNALS):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    with suppress(EOFError, ConnectionError):  # the rank has ended
        while True:
            samples = pipe.recv()
            try:
                made: Batch | Exception = assemble(samples)
            except Exception as error:
                # The rank raises it; where it arose would else be lost on the way.
                error.add_note(traceback.format_exc())
                made = error
            pipe.send(made)


def _end_with_parent() -> None:
    # A worker that hangs would outlive a rank that was killed.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    time.sleep(_PATIENCE_S)
    os._exit(1)
