"""Backends: where jobs run. A new one is a module with `BACKEND` and a line in `MODULES`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from jobs.launch.freeze import FrozenJob
from pipeline.config_tree import closest
from pipeline.errors import ConfigError

MODULES = {
    "local": "jobs.launch.local",
    "hosts": "jobs.launch.hosts",
    "slurm": "jobs.launch.slurm",
    "ray": "jobs.launch.ray.backend",
    "kubernetes": "jobs.launch.kubernetes.backend",
}


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A job in the words of a backend."""

    files: Mapping[str, str]
    """Texts that are written into the job's folder, by name."""
    command: list[str]
    """What submits it, once they are written."""


@dataclass(frozen=True, kw_only=True)
class JobState:
    """How a submitted job stands."""

    word: Literal["waiting", "running", "finished", "interrupted", "failed", "cancelled", "lost"]
    """`interrupted`: it saved its state and can be resumed; `lost`: nobody knows how it ended."""
    detail: str = ""
    """More, in the backend's words."""
    exit_status: int | None = None
    """Exit status of a job that ended and could write it down."""

    @property
    def active(self) -> bool:
        """Whether it still runs, or will."""
        return self.word in ("waiting", "running")


class Backend(Protocol):
    """What launching asks of a scheduler."""

    def render(self, frozen: FrozenJob) -> Rendered:
        """The job in the backend's words; ConfigError where it cannot run it. Writes nothing."""

    def submit(self, folder: Path, command: list[str]) -> str:
        """Sends a written job; the id by which the backend knows it."""

    def state(self, folder: Path, job_id: str) -> JobState:
        """How a job stands."""

    def cancel(self, folder: Path, job_id: str) -> None:
        """Ends a job for good; it may save its state first."""

    def logs(self, folder: Path, job_id: str, lines: int) -> Iterator[str]:
        """The last lines of each log, under the log's name."""


def backend(name: str) -> Backend:
    """The backend of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in MODULES:
        near = closest(name, MODULES)
        hint = f"; did you mean {near}?" if near else ""
        raise ConfigError(f"backend = {name!r}: must be one of {', '.join(MODULES)}{hint}")
    found: Backend = importlib.import_module(MODULES[name]).BACKEND
    return found
