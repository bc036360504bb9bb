"""Ends a rank in which nothing goes on any more, and prints where its threads are.

A thread watches, so it does not matter whether the main thread waits in a collective, in a read
from a network folder that is gone, or in a loop. Should native code hold the interpreter itself,
that thread stands still too; then a timer inside Python, which needs no interpreter, does the same.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from pipeline.training.peers import Peers

STACKS_SIGNAL = signal.SIGUSR2
"""Makes a rank print the stacks of all its threads, and go on."""
_GRACE_S = 3.0
"""From the stacks to the end: the other ranks print theirs meanwhile."""
_LEAST_TICK_S = 0.05
_STDERR = 2


class Watchdog:
    """Expects progress of this rank while it is entered."""

    def __init__(
        self, *, limit_s: float, rank: int, peers: Peers, run_dir: Path, doing: Callable[[], str]
    ) -> None:
        """Prepares to watch.

        Args:
            limit_s: Longest time without progress.
            rank: This rank.
            peers: Other ranks, which are made to print their stacks too.
            run_dir: Folder for the stacks.
            doing: Says in a phrase what the rank is doing.
        """
        self._limit_s = limit_s
        self._rank = rank
        self._peers = peers
        self._file = run_dir / f"stacks-rank-{rank}.txt"
        self._doing = doing
        self._step = 0
        self._progressed = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self.progressed(self._step)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def progressed(self, step: int | None = None) -> None:
        """A step, a batch of validation or a checkpoint has ended.

        Args:
            step: Steps done, where that changed.
        """
        self._step = self._step if step is None else step
        self._progressed = time.monotonic()

    def write_stacks(self) -> None:
        """Prints where every thread is, on stderr and into the run's folder."""
        # Written at once, so that what several ranks print does not mix line by line.
        with tempfile.TemporaryFile() as scratch:
            faulthandler.dump_traceback(scratch, all_threads=True)
            scratch.seek(0)
            stacks = scratch.read().decode(errors="replace")
        said = (
            f"rank {self._rank}, after step {self._step}, is {self._doing()}; its threads:\n"
            f"{stacks}\n"
        )
        _say(said)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(said)

    def _watch(self) -> None:
        tick = max(_LEAST_TICK_S, min(1.0, self._limit_s / 8))
        while not self._over.wait(tick):
            if time.monotonic() - self._progressed > self._limit_s:
                self._give_up()
            # Not renewed when this thread cannot run: then it is this that ends the process.
            faulthandler.dump_traceback_later(self._limit_s + _GRACE_S, exit=True)

    def _give_up(self) -> None:
        # First of all: a log that nobody reads or a folder that hangs must not hold it up.
        ending = threading.Timer(_GRACE_S, os._exit, (1,))
        ending.daemon = True
        ending.start()
        fates = "".join(f"; {fate}" for fate in self._peers.fates())
        _say(
            f"error: rank {self._rank} made no progress for {self._limit_s:g} s after step"
            f" {self._step}: it is {self._doing()}{fates}; the stacks of its threads follow and go"
            f" to {self._file}; training.step_timeout_s allows more\n"
        )
        # One that is stopped must go on, to print and to end too.
        self._peers.send(signal.SIGCONT)
        self._peers.send(STACKS_SIGNAL)
        self.write_stacks()
        ending.join()


def _say(line: str) -> None:
    # Not through sys.stderr: the main thread may hold its lock.
    os.write(_STDERR, line.encode())
