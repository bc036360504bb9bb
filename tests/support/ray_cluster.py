"""A real Ray cluster on this machine: a head, more nodes, and ways to lose them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

OBJECT_STORE_BYTES = 100_000_000
START_S = 150
"""Seconds that a node may take to start, on a machine that does other work too."""
STARTS = 3
"""Tries to start a node: Ray gives its own processes 30 s, which a busy machine may exceed."""


def dashboard_lacks() -> list[str]:
    """Packages of Ray's job server that are not installed.

    By their metadata: one of them, once it is imported, takes the place of its own module.
    """
    missing = []
    for name in ("aiohttp", "aiohttp-cors", "colorful"):
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    return missing


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RayNode:
    """One `ray start --block` with everything that it starts."""

    def __init__(self, *arguments: str) -> None:
        command = [
            *(str(Path(sys.executable).parent / "ray"), "start", "--block"),
            *("--node-ip-address=127.0.0.1", "--num-gpus=0"),
            *(f"--object-store-memory={OBJECT_STORE_BYTES}", *arguments),
        ]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the node
        # Away from the checkout: workers have to find the code by the driver's path.
        self._process = subprocess.Popen(
            command,
            cwd="/",
            stdout=self._said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        children = []
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self._process.pid).children(recursive=True)
        self._process.terminate()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        self._said.close()

    def started(self) -> bool:
        """Waits until the node is part of its cluster; False when it gave up."""
        until = time.monotonic() + START_S
        while time.monotonic() < until and self._process.poll() is None:
            if b"Ray runtime started" in os.pread(self._said.fileno(), 100_000, 0):
                return True
            time.sleep(0.1)
        return False

    def raylet(self) -> psutil.Process | None:
        """The process that is the node to the rest of the cluster."""
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                if child.name() == "raylet":
                    return child
        return None

    def lose(self, doing: str) -> None:
        """Kills the node as a power cut would: the raylet and its workers, none of them asked.

        Args:
            doing: The task that one of its workers has to be in the middle of.
        """
        raylet = self.raylet()
        assert raylet is not None, "the node has no raylet"
        until = time.monotonic() + 60
        while True:
            workers = raylet.children(recursive=True)
            if any(_title(worker).startswith(f"ray::{doing}") for worker in workers):
                break
            assert time.monotonic() < until, f"the node never did {doing}"
        for process in (raylet, *workers):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)


def _title(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline()).strip()
    return ""


@contextmanager
def started(make: Callable[[], RayNode]) -> Iterator[RayNode]:
    """A node that is up."""
    for _ in range(STARTS):
        with make() as node:
            if node.started():
                yield node
                return
    raise AssertionError("the node did not start")


@contextmanager
def head(cpus: int = 1, dashboard_port: int | None = None) -> Iterator[str]:
    """A cluster of one node that was there before us; its address."""
    port = free_port()
    # A short path for its sockets, and no trace for other programs on this machine to follow.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as temporary:
        arguments = [
            *("--head", f"--port={port}", f"--num-cpus={cpus}", f"--temp-dir={temporary}"),
            f"--include-dashboard={'false' if dashboard_port is None else 'true'}",
            *([] if dashboard_port is None else [f"--dashboard-port={dashboard_port}"]),
            f"--dashboard-agent-listen-port={free_port()}",
        ]
        with started(lambda: RayNode(*arguments)):
            yield f"127.0.0.1:{port}"


@contextmanager
def joined(address: str, cpus: int = 1) -> Iterator[RayNode]:
    """One more node of a cluster, once it is part of it."""
    arguments = [
        f"--address={address}",
        f"--num-cpus={cpus}",
        f"--dashboard-agent-listen-port={free_port()}",
    ]
    with started(lambda: RayNode(*arguments)) as node:
        yield node
