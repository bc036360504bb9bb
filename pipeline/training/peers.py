"""The processes of the other ranks on this machine, and what became of them.

Whoever loses contact with another rank knows only that a connection broke. Looking at the process
tells which rank is gone, and how.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline.errors import TrainingError
from pipeline.training.world import LostContact, World

_PATIENCE_S = 1.0
"""A process's connections break a moment before it is gone."""


@dataclass(frozen=True)
class Peers:
    """Other ranks whose processes can be seen from here."""

    processes: dict[int, psutil.Process]
    """By rank."""

    @classmethod
    def meet(cls, world: World) -> Peers:
        """Every rank tells the others which process it is; all ranks call it."""
        if world.size == 1:
            return cls({})
        own = (socket.gethostname(), psutil.Process().pid, psutil.Process().create_time())
        found = {}
        for rank, (host, pid, created) in enumerate(world.gather(own)):
            if host != own[0] or rank == world.rank:
                continue
            try:
                process = psutil.Process(pid)
                # In another container the number may be that of another process.
                if abs(process.create_time() - created) < 1:
                    found[rank] = process
            except psutil.Error:
                continue
        return cls(found)

    def fates(self) -> list[str]:
        """A phrase for each rank that is gone, stopped, or waits for a disk."""
        return [
            f"rank {rank} (process {process.pid}) {fate}"
            for rank, process in sorted(self.processes.items())
            if (fate := _fate(process)) is not None
        ]

    def gone(self) -> list[str]:
        """The same after contact was lost: waits a moment for a rank that is about to be gone."""
        until = time.monotonic() + _PATIENCE_S
        while not (found := self.fates()) and self.processes and time.monotonic() < until:
            time.sleep(0.05)
        return found

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to all of them."""
        for process in self.processes.values():
            try:
                process.send_signal(number)
            except psutil.Error:
                continue


@contextmanager
def telling_fates(world: World, peers: Peers) -> Iterator[None]:
    """For a rank's whole run: says of one that breaks what a reader of the log has to know.

    Raises:
        TrainingError: contact with another rank was lost; with what became of it.
        RuntimeError: something called sys.exit, which would pass for an end.
    """
    try:
        with world.contact():
            yield
    except LostContact as error:
        raise TrainingError("; ".join([str(error), *peers.gone()])) from error
    except SystemExit as error:
        raise RuntimeError(
            f"rank {world.rank}: sys.exit({error.code!r}) in the middle of the run"
        ) from error


def _fate(process: psutil.Process) -> str | None:
    try:
        status = process.status()
    except psutil.NoSuchProcess:
        return "is gone"
    if status == psutil.STATUS_ZOMBIE:
        return _how_it_ended(process.pid)
    if status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
        return "is stopped"
    if status == psutil.STATUS_DISK_SLEEP:
        return "waits for a disk or a network folder"
    return None


def _how_it_ended(pid: int) -> str:
    try:
        # The last number of the line is what its parent will be told when it asks.
        code = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").split()[-1])
    except (OSError, ValueError):
        return "is gone"
    number = code & 0x7F
    if number:
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return f"was killed by {name}"
    return f"ended with status {code >> 8}"
