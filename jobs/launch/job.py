"""JobConfig: one job, as every backend reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from pipeline.errors import ConfigError
from pipeline.tracking.secrets import redact

Stage = Literal["prepare", "train", "sweep", "evaluate", "features"]

LONGEST_NAME = 52
"""Characters of a job's name: a scheduler's limit of 63, less what is appended to it."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A folder of the cluster that the job sees."""

    source: str
    """Path on the host, "pvc:NAME" (a claim, on Kubernetes) or "memory:SIZE" (on Kubernetes)."""
    mount: str
    """Absolute path inside the job."""
    read_only: bool = False
    """Whether the job may only read it."""

    def __post_init__(self) -> None:
        if not self.source or "\0" in self.source:
            raise ConfigError(f"source = {self.source!r}: must be a path, pvc:NAME or memory:SIZE")
        if not self.mount.startswith("/") or "\0" in self.mount:
            raise ConfigError(f"mount = {self.mount!r}: must be an absolute path")


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """One job, for any backend."""

    name: str
    """Lower-case letters, digits and inner hyphens, at most 52 characters."""
    stage: Stage = "train"
    """What is run."""
    recipe: str
    """The stage's recipe (YAML)."""
    overrides: list[str] = field(default_factory=list)
    """Settings over the recipe, as on the command line but without `--`: `optimizer.lr=3e-3`."""
    nodes: int = 1
    """Machines; more than one for training only."""
    accelerators_per_node: int = 0
    """GPUs of each machine; 0 trains on CPU."""
    processes_per_node: int | None = None
    """Ranks on each machine; None takes one for each accelerator, or one."""
    cpus_per_process: int = 4
    """CPU cores of each rank."""
    memory_gb: float | None = None
    """Memory of each machine in GB; None leaves it to the cluster."""
    time_limit_s: int = 86_400
    """Longest time that the job may run without being started again, in seconds."""
    signal_before_end_s: int = 300
    """Seconds before the time limit at which the ranks are asked to save and stop."""
    max_restarts: int = 3
    """How often a job that saved its state and stopped is started again."""
    image: str | None = None
    """Container image; None runs what is installed on the nodes."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of the job's environment; for values that may be read by others."""
    secrets: list[str] = field(default_factory=list)
    """Where secret variables stand, never their values: a Kubernetes secret's name, or a file of
    KEY=VALUE lines that the nodes can read."""
    volumes: list[Volume] = field(default_factory=list)
    """Folders that the job sees."""
    output_root: str = "launched"
    """Folder that holds the frozen jobs and their logs."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or len(self.name) > LONGEST_NAME:
            raise ConfigError(
                f"name = {self.name!r}: must be lower-case letters, digits and inner hyphens, at"
                f" most {LONGEST_NAME} characters"
            )
        self._check_numbers()
        self._check_texts()

    def _check_numbers(self) -> None:
        lowest = {
            "nodes": 1,
            "accelerators_per_node": 0,
            "cpus_per_process": 1,
            "time_limit_s": 60,
            "signal_before_end_s": 1,
            "max_restarts": 0,
        }
        for path, least in lowest.items():
            if getattr(self, path) < least:
                raise ConfigError(f"{path} = {getattr(self, path)}: must be {least} or more")
        if self.processes_per_node is not None and self.processes_per_node < 1:
            raise ConfigError(
                f"processes_per_node = {self.processes_per_node}: must be 1 or more, or null"
            )
        if self.memory_gb is not None and not 0 < self.memory_gb < float("inf"):
            raise ConfigError(f"memory_gb = {self.memory_gb}: must be above 0, or null")
        if self.signal_before_end_s >= self.time_limit_s:
            raise ConfigError(
                f"signal_before_end_s = {self.signal_before_end_s}: must be below time_limit_s ="
                f" {self.time_limit_s}"
            )
        if self.stage != "train" and (self.nodes > 1 or (self.processes_per_node or 1) > 1):
            raise ConfigError(
                f"stage = {self.stage}: runs as one process on one node; nodes and"
                " processes_per_node belong to train"
            )

    def _check_texts(self) -> None:
        for path, text in {"recipe": self.recipe, "output_root": self.output_root}.items():
            if not text or "\0" in text:
                raise ConfigError(f"{path} = {text!r}: must be a path")
        if self.image is not None and (not self.image or "\0" in self.image):
            raise ConfigError(f"image = {self.image!r}: must name an image, or be null")
        for index, override in enumerate(self.overrides):
            if override.startswith("-") or not override.partition("=")[1]:
                raise ConfigError(f"overrides[{index}] = {override!r}: must be SETTING=VALUE")
        for variable, value in self.environment.items():
            if not _VARIABLE.fullmatch(variable):
                raise ConfigError(
                    f"environment names {variable!r}: a variable has letters, digits and '_'"
                )
            if "\0" in value:
                raise ConfigError(f"environment.{variable}: must not hold a NUL character")
            if redact(value) != value:
                raise ConfigError(
                    f"environment.{variable}: holds a password; name a file or secret in secrets"
                )
        for index, reference in enumerate(self.secrets):
            if not reference or "\0" in reference or "\n" in reference:
                raise ConfigError(f"secrets[{index}] = {reference!r}: must be a name or a path")

    @property
    def saves(self) -> bool:
        """Whether the stage saves its state when it is asked to stop, and goes on later."""
        return self.stage in ("train", "sweep")

    @property
    def ranks_per_node(self) -> int:
        """Processes on each machine."""
        if self.stage != "train":
            return 1
        return self.processes_per_node or max(1, self.accelerators_per_node)

    @property
    def ranks(self) -> int:
        """Processes on all machines."""
        return self.nodes * self.ranks_per_node
