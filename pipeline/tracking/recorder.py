"""What training talks to: a bounded queue, and a thread that writes it into the journal.

Telling something costs training one place in a queue. What takes longer than a line in a file, such
as a git command or the drawing of a curve, is done by a second thread: numbers never wait for it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from pipeline.tracking.courier import Courier
from pipeline.tracking.entries import Entry
from pipeline.tracking.journal import Journal
from pipeline.tracking.secrets import redact

log = logging.getLogger(__name__)

Work = Callable[[], Iterable[Entry]]
"""Makes entries, in a thread."""

ToldT = TypeVar("ToldT")
QUEUE_PLACES = 4_096
_RETRY_S = 1.0


class Recorder:
    """Takes what a run tells and never makes it wait."""

    def __init__(self, journal: Journal, courier: Courier, places: int = QUEUE_PLACES) -> None:
        """Starts the threads.

        Args:
            journal: Where everything goes.
            courier: Is woken when something was written.
            places: What may wait to be written; more is left out, with a warning and a count.
        """
        self._journal = journal
        self._courier = courier
        self._entries: queue.Queue[Entry | None] = queue.Queue(places)
        self._works: queue.Queue[Work | None] = queue.Queue(places)
        self._left_out = 0
        self._warned: set[str] = set()
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._write_all, name="recording", daemon=True)
        self._worker = threading.Thread(target=self._work_all, name="drawing", daemon=True)
        self._writer.start()
        self._worker.start()

    def tell(self, entry: Entry) -> None:
        """Takes an entry; returns at once, whatever the disk and the server do."""
        self._put(self._entries, entry)

    def tell_later(self, work: Work) -> None:
        """Takes a function that makes entries; functions are called one after another."""
        self._put(self._works, work)

    def close(self, last: Work, timeout_s: float) -> None:
        """Waits, for a bounded time, until everything is written.

        Args:
            last: Makes the entries that come behind all others.
            timeout_s: Longest wait.
        """
        until = time.monotonic() + timeout_s
        self._end(self._works, self._worker, until)
        for entry in last():
            self.tell(entry)
        self._closing.set()
        self._end(self._entries, self._writer, until)
        if self._left_out or self._writer.is_alive() or self._worker.is_alive():
            log.warning(
                "part of the run's record could not be written in time; metrics.jsonl of the run"
                " has its metrics, and `prefixworks runs sync` delivers them from there"
            )

    def _put(self, places: queue.Queue[ToldT | None], told: ToldT) -> None:
        try:
            places.put_nowait(told)
        except queue.Full:
            self._left_out += 1
            self._warn("the disk does not keep up: part of the run's record is left out")

    def _end(
        self, places: queue.Queue[ToldT | None], thread: threading.Thread, until: float
    ) -> None:
        try:
            places.put(None, timeout=max(0.0, until - time.monotonic()))
        except queue.Full:
            return  # the thread is stuck, and is left behind
        thread.join(max(0.0, until - time.monotonic()))

    def _work_all(self) -> None:
        while (work := self._works.get()) is not None:
            try:
                for entry in work():
                    self.tell(entry)
            except Exception as error:  # the thread's boundary: training must not notice
                self._warn(f"part of the run's record could not be made: {error!r}")

    def _write_all(self) -> None:
        while (entry := self._entries.get()) is not None:
            # A full disk may have room again; until then, the queue holds what comes.
            while not self._write(entry):
                if self._closing.is_set():
                    self._left_out += 1
                    break
                self._closing.wait(_RETRY_S)

    def _write(self, entry: Entry) -> bool:
        """Whether an entry is dealt with, or must be tried again."""
        try:
            self._journal.append(entry)
        except OSError as error:
            self._warn(f"the run's record cannot be written: {error}")
            return False
        except Exception as error:  # the thread's boundary: the next entry may do better
            self._warn(f"part of the run's record cannot be written: {error!r}")
            self._left_out += 1
        self._courier.notify()
        return True

    def _warn(self, reason: str) -> None:
        """Says each kind of trouble once."""
        kind = reason.split(":")[0]
        if kind not in self._warned:
            log.warning("%s; training goes on", redact(reason))
            self._warned.add(kind)
