"""Time and memory of a command with all the processes that it starts.

CPU time is counted twice, and the larger count is reported, since each can only miss something:
what the kernel adds up for processes that were waited for (Ray's are not), and the last that was
seen of each process in the tree (which ends up to one look too early).
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_LOOK_EVERY_S = 0.2
_PATIENCE_S = 20.0
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Usage:
    """What a command took: seconds, and the highest sum of resident memory of its processes."""

    wall_s: float
    cpu_s: float
    peak_bytes: int


def run_measured(command: Sequence[str], env: Mapping[str, str], log: Path) -> Usage:
    """Runs a command to its end, and to that of all processes that it leaves behind.

    Raises:
        RuntimeError: It failed; its output is in the log.
    """
    # Orphans become ours, so that their CPU time is counted when they end.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = _waited_for_s()
    seen: dict[tuple[int, float], float] = {}
    peak = 0
    began = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **env}, stdout=output, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            peak = max(peak, _look(seen))
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_EVERY_S)
    wall = time.perf_counter() - began
    _end_orphans(seen)
    if process.returncode != 0:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{command[0]} ended with status {process.returncode}:\n{end}")
    cpu = max(_waited_for_s() - before, sum(seen.values()))
    return Usage(wall_s=wall, cpu_s=cpu, peak_bytes=peak)


def _look(seen: dict[tuple[int, float], float]) -> int:
    """Notes the CPU time of every descendant; returns the sum of their resident memory."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess), process.oneshot():
            times = process.cpu_times()
            seen[process.pid, process.create_time()] = times.user + times.system
            total += process.memory_info().rss
    return total


def _waited_for_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _end_orphans(seen: dict[tuple[int, float], float]) -> None:
    until = time.monotonic() + _PATIENCE_S
    while left := psutil.Process().children(recursive=True):
        _look(seen)
        for process in left if time.monotonic() > until else []:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(_LOOK_EVERY_S / 4)
