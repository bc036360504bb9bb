"""System metrics: every machine of a run tells how busy it is, under its own name.

What is read and how it is called is MLflow's own, so that the UI shows it among its system metrics;
what is told goes through a journal of the node's own, as all that a run tells does.
"""

from __future__ import annotations

import logging
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

from pipeline.errors import RegistryError
from pipeline.tracking.config import TrackingConfig
from pipeline.tracking.courier import Courier
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.identity import read_identity
from pipeline.tracking.journal import Journal

log = logging.getLogger(__name__)

_LONGEST_GOODBYE_S = 5.0


@contextmanager
def node_metrics(run_dir: Path, config: TrackingConfig) -> Iterator[None]:
    """Tells how busy this machine is for as long as the context lasts; one process a node does."""
    if config.system_metrics_s == 0:
        yield
        return
    watch = _NodeWatch(run_dir, config, node_name())
    try:
        yield
    finally:
        watch.close()


def node_name() -> str:
    """This machine's name, in the letters that MLflow allows in the name of a metric."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", platform.node()) or "node"


class Reader(Protocol):
    """What MLflow's monitors do; they carry no types."""

    def collect_metrics(self) -> None:
        """Looks once."""

    def aggregate_metrics(self) -> dict[str, float]:
        """Means of what was seen, by name."""

    def clear_metrics(self) -> None:
        """Forgets what was seen."""


def readers() -> list[Reader]:
    """MLflow's readers for what this machine has."""
    kinds: list[Callable[[], Reader]] = [CPUMonitor, DiskMonitor, GPUMonitor]
    found = []
    for kind in kinds:
        try:
            found.append(kind())
        except (ImportError, RuntimeError) as error:
            # No GPU, or no nvidia-ml-py to ask it with.
            log.info("not watched: %s", error)
    return found


class _NodeWatch:
    """A thread that looks at the machine and writes down what it sees."""

    def __init__(self, run_dir: Path, config: TrackingConfig, node: str) -> None:
        self._run_dir, self._config, self._node = run_dir, config, node
        self._stop = threading.Event()
        self._journal: Journal | None = None
        self._courier: Courier | None = None
        self._looks = 0
        self._thread = threading.Thread(target=self._work, name="node metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(_LONGEST_GOODBYE_S)

    def _work(self) -> None:
        # One look is taken at the end too, so that the shortest run has one.
        try:
            found = readers()
            last = False
            while not last:
                last = self._stop.wait(self._config.system_metrics_s)
                self._look(found)
            if self._courier is not None:
                self._courier.close()
        except Exception as error:  # the thread's boundary: training must not notice
            log.warning("the system metrics of %s are not recorded: %s", self._node, error)

    def _look(self, found: list[Reader]) -> None:
        if self._journal is None and not self._open():
            return
        values: dict[str, float] = {}
        for reader in found:
            reader.collect_metrics()
            values |= reader.aggregate_metrics()
            reader.clear_metrics()
        assert self._journal is not None
        assert self._courier is not None
        self._journal.append(
            {
                "kind": "metrics",
                "step": self._looks,
                "time_ms": int(time.time() * 1000),
                "values": {f"system/{self._node}/{name}": value for name, value in values.items()},
            }
        )
        self._looks += 1
        self._courier.notify()

    def _open(self) -> bool:
        """Opens the journal once the run has introduced itself, so that a refused one has none."""
        try:
            identity = read_identity(self._run_dir)
        except RegistryError as error:
            log.warning("the system metrics of %s are not recorded: %s", self._node, error)
            return False
        if identity is None:
            return False
        self._journal = Journal(self._run_dir, node=self._node, limit_mb=self._config.journal_mb)
        # A resumed run counts on.
        for entry in self._journal.entries():
            self._looks = entry.get("step", -1) + 1
        delivery = Delivery(self._journal, identity, self._config.request_timeout_s, creates=False)
        self._courier = Courier(delivery, self._config, quiet=True)
        return True
