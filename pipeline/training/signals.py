"""Asking a run to stop: the signal is only noted, and all ranks act on it at the same step."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from types import FrameType
from typing import Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1


class StopRequest:
    """Notes SIGTERM and SIGUSR1 while it is entered; further ones change nothing.

    Once one was noted, they stay ignored: the rank is on its way out, and the launcher sends
    SIGTERM to the others as soon as the first of them is gone.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            leaving = signal.SIG_IGN if self.requested else handler
            signal.signal(number, leaving)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def follow_parent() -> None:
    """Asks for SIGTERM when the parent dies (Linux), so that no rank outlives its launcher."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
