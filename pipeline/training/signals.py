"""Asking a run to stop: the request is only noted, and all ranks act on it at the same step.

Python runs a signal's handler between two steps of its interpreter, so not while a collective or a
read waits in native code. Therefore signals are taken by a thread, which is told of them at once.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from enum import Enum
from typing import Any, Self

from pipeline.errors import EXIT_INTERRUPTED

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1


class Listener:
    """Calls functions in a thread of its own when signals arrive, while it is entered.

    Outside the main thread, where Python takes no signals, it does nothing.
    """

    def __init__(self) -> None:
        self._actions: dict[int, Callable[[], None]] = {}
        self._before: dict[int, Any] = {}
        self._ends: tuple[socket.socket, socket.socket] | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._ends = socket.socketpair()
        ours, theirs = self._ends
        theirs.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(ours,), name="signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._ends is None:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        theirs = self._ends[1]
        theirs.close()  # the thread reads its end, and ends
        self._ends = None

    def on(self, number: signal.Signals, action: Callable[[], None]) -> None:
        """Says what a signal does from now on."""
        self._actions[number] = action
        if self._ends is not None and number not in self._before:
            self._before[number] = signal.signal(number, _leave_it_to_the_thread)

    def _listen(self, ours: socket.socket) -> None:
        with ours:
            while received := ours.recv(64):
                for number in received:
                    if number in self._actions:
                        self._actions[number]()


class _Phase(Enum):
    STARTING = 0
    RUNNING = 1
    FINISHED = 2


class StopRequest:
    """Takes SIGTERM and SIGUSR1 while it is entered; a second one changes nothing.

    Before the first step nothing can be lost, and the process ends at once. While the run goes on,
    the request is noted. After the last step it comes too late, and the run ends as it would have.
    """

    def __init__(self) -> None:
        self.requested = False
        self.listener = Listener()
        """Where other signals can be listened to."""
        self._phase = _Phase.STARTING

    def __enter__(self) -> Self:
        self.listener.__enter__()
        for number in STOP_SIGNALS:
            self.listener.on(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.__exit__()
        if self.requested:
            # The rank is on its way out, and the launcher sends SIGTERM to the others as soon as
            # the first of them is gone.
            ignore_stop_signals()

    def run_begins(self) -> None:
        """From now on there is something to save."""
        self._phase = _Phase.RUNNING

    def run_ended(self) -> None:
        """From now on a request changes nothing."""
        self._phase = _Phase.FINISHED

    def _ask(self) -> None:
        if self._phase is _Phase.FINISHED:
            return
        self.requested = True
        if self._phase is _Phase.STARTING:
            os.write(2, b"error: asked to stop before the first step; nothing is lost\n")
            os._exit(EXIT_INTERRUPTED)


def ignore_stop_signals() -> None:
    """For a process that has nothing left to do but to end."""
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def follow_parent() -> None:
    """Asks for SIGTERM when the parent dies (Linux), so that no rank outlives its launcher."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


def _leave_it_to_the_thread(number: int, frame: object) -> None:
    """Keeps Python from the signal's default action."""
