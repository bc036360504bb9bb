"""Which checks are made of a machine, with what they are given."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from jobs.doctor.base import check_base
from jobs.doctor.check import Check
from jobs.doctor.folders import check_checkpoints, check_disk, check_disk_speed
from jobs.doctor.gpus import check_gpus
from jobs.doctor.libraries import check_libraries, check_python, read_constraints
from jobs.doctor.local_ranks import check_local_ranks
from jobs.doctor.machine import (
    check_compiler,
    check_memory,
    check_open_files,
    check_processors,
    check_shared_memory,
)
from jobs.doctor.object_store import check_store, store_location
from jobs.doctor.tracking import check_tracking
from pipeline.errors import ConfigError

BETWEEN_RANKS = ("all-reduce", "clocks")
"""What is measured between the ranks of a job, once they have met."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the checks are given."""

    base: str = "ofa-micro"
    """Name or folder of the base that should load."""
    output_dir: Path = Path("runs")
    """Folder of the runs and their checkpoints; it may not exist yet."""
    store: str | None = None
    """Object store with data sets; None looks at none."""
    tracking: str | None = None
    """MLflow tracking URI that has to answer; None takes that of the environment, if any."""
    gpus: int = 0
    """GPUs that each node has to have."""
    constraints: Path | None = None
    """File with the tested versions; None takes the checkout's, if there is one."""
    skip: Collection[str] = ()
    """Checks to leave out, by name."""

    def __post_init__(self) -> None:
        names = (*self._all(), *BETWEEN_RANKS)
        for name in self.skip:
            if name not in names:
                raise ConfigError(f"--skip={name}: no such check; checks: {', '.join(names)}")
        if self.gpus < 0:
            raise ConfigError(f"--gpus={self.gpus}: expected 0 or more")
        # Now, since on a node of a job it would stop one rank while the others wait for it.
        if self.store is not None:
            store_location(self.store)
        if self.constraints is not None:
            read_constraints(self.constraints)

    def node_steps(self) -> dict[str, Callable[[], Check]]:
        """The checks of one node by their names, in their order."""
        steps = {name: step for name, step in self._all().items() if name not in self.skip}
        if self.store is None:
            steps.pop("object store", None)
        return steps

    def local_steps(self) -> dict[str, Callable[[], Check]]:
        """The checks of a machine that is in no job."""
        steps = self.node_steps()
        if "all-reduce" not in self.skip:
            steps["all-reduce"] = check_local_ranks
        return steps

    def _all(self) -> dict[str, Callable[[], Check]]:
        return {
            "python": check_python,
            "libraries": lambda: check_libraries(self.constraints),
            "processors": check_processors,
            "memory": check_memory,
            "shared memory": check_shared_memory,
            "open files": check_open_files,
            "compiler": check_compiler,
            "GPUs": lambda: check_gpus(self.gpus),
            "disk": lambda: check_disk(self.output_dir),
            "checkpoints": lambda: check_checkpoints(self.output_dir),
            "disk speed": lambda: check_disk_speed(self.output_dir),
            "MLflow": lambda: check_tracking(self.tracking, self.output_dir),
            "object store": lambda: check_store(self.store or ""),
            "base": lambda: check_base(self.base),
        }
