"""The lock of a run's folder: who trains there holds it; looking needs no torch."""

from __future__ import annotations

import fcntl
from pathlib import Path

LOCK = ".lock"
"""Held by the first rank while it trains."""


def in_use(folder: Path) -> bool:
    """Whether a process is training in a folder."""
    try:
        with (folder / LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
