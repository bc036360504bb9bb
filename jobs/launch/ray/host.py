"""RankHost: the actor that holds one rank's process on its node.

A rank is a process of its own and not a thread of Ray's worker: it takes signals, has its own log
and device, and is the same program that every other launcher starts. It dies with its actor.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import ray

from jobs.launch.packages import differences, installed
from pipeline.errors import TrainingError
from pipeline.training.signals import follow_parent

# Above Ray's own ports, below where Linux takes the ports of outgoing connections from.
_PORTS = range(20_000, 32_000)
_TRIES = 100


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a rank is going to run."""

    node: str
    """Ray's name of the node."""
    address: str
    """Its address."""
    gpus: tuple[str, ...]
    """Devices that are kept for this rank."""


class RankHost:
    """Starts a rank and tells of it; one call at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def place(self) -> Place:
        """Where this is."""
        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", [])
        address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return Place(node=context.get_node_id(), address=address, gpus=tuple(gpus))

    def free_port(self) -> int:
        """A port on this node at which the ranks can meet."""
        for port in random.sample(_PORTS, _TRIES):
            with socket.socket() as probe, suppress(OSError):
                probe.bind(("", port))
                return port
        raise TrainingError(f"node {socket.gethostname()}: no free port for the ranks to meet at")

    def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: str | None,
        locked: Mapping[str, str],
    ) -> None:
        """Starts the rank.

        Args:
            command: Arguments of this node's Python.
            environment: Variables over those of this process.
            log: File that it talks into, if its folder is seen here.
            locked: Versions of packages that have to be installed here.

        Raises:
            TrainingError: they are not.
        """
        if locked and (found := differences(locked, installed())):
            raise TrainingError(
                f"node {socket.gethostname()}: the packages are not those that the job was"
                f" submitted with: {', '.join(found[:5])}; install those, or launch a new job"
            )
        with ExitStack() as stack:
            output = None
            if log is not None and Path(log).parent.is_dir():
                output = stack.enter_context(Path(log).open("ab"))
            self._process = subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=follow_parent,
            )

    def status(self) -> int | None:
        """The rank's exit status, negative where a signal killed it; None while it runs."""
        return None if self._process is None else self._process.poll()

    def ask(self) -> None:
        """Asks the rank to save and stop."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Makes sure that the rank is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
