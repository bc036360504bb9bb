"""What `prefixworks launch` is told: the job, where it runs, and what only that place knows."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from jobs.launch.job import JobConfig
from jobs.launch.kubernetes.checks import Kind
from jobs.launch.ray.config import RayConfig
from pipeline.errors import ConfigError

# A shell on each host reads it.
_ADDRESS = re.compile(r"[A-Za-z0-9:][\w.:-]*")


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """What Slurm is asked for beside the job's own needs."""

    launcher: Literal["srun", "torchrun", "deepspeed"] = "srun"
    """Who starts the ranks: srun starts each, torchrun those of a node, or DeepSpeed's launcher."""
    partition: str | None = None
    """Partition; None takes the cluster's default."""
    account: str | None = None
    """Account that pays."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that the nodes must have."""
    sbatch_options: list[str] = field(default_factory=list)
    """More options of sbatch, each as `--name=value`."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell that are run before the work, as they stand: `module load cuda`."""
    master_addr: str | None = None
    """Address at which the ranks meet; None takes the name of the job's first node."""
    container: Literal["pyxis", "apptainer"] | None = None
    """What runs the image."""

    def __post_init__(self) -> None:
        for path in ("partition", "account", "qos", "constraint", "master_addr"):
            text = getattr(self, path)
            if text is not None and (not text or "\0" in text):
                raise ConfigError(f"{path} = {text!r}: must not be empty; null leaves it out")
        for index, option in enumerate(self.sbatch_options):
            if not option.startswith("--") or len(option) < 3 or "\0" in option:
                raise ConfigError(f"sbatch_options[{index}] = {option!r}: must be --name=value")
        for index, line in enumerate(self.setup):
            if "\0" in line:
                raise ConfigError(f"setup[{index}]: must not hold a NUL character")


@dataclass(frozen=True, kw_only=True)
class HostsConfig:
    """Machines without a scheduler, which pdsh reaches by ssh."""

    hostfile: str | None = None
    """File of lines `NAME slots=N`, as DeepSpeed's launcher reads it; needed."""
    master_addr: str | None = None
    """Address at which the ranks meet; None takes the name of the first host."""
    ssh_port: int | None = None
    """Port of sshd on all hosts; None leaves it to ssh."""

    def __post_init__(self) -> None:
        address = self.master_addr
        if address is not None and not _ADDRESS.fullmatch(address):
            raise ConfigError(f"master_addr = {address!r}: must be a name or an address")
        if self.ssh_port is not None and not 0 < self.ssh_port < 65_536:
            raise ConfigError(f"ssh_port = {self.ssh_port}: must be from 1 to 65535, or null")


@dataclass(frozen=True, kw_only=True)
class KubernetesConfig:
    """What a job becomes on Kubernetes, and in which cluster."""

    kind: Kind = "indexed-job"
    """Kind of the job's object; all but indexed-job need their operator in the cluster."""
    ray_workers: int = 1
    """Pods of a rayjob's cluster beside its head."""
    namespace: str | None = None
    """Namespace; None takes the one that kubectl is set up for."""
    context: str | None = None
    """Entry of kubectl's configuration, which names a cluster and a user; None takes the current
    one."""

    def __post_init__(self) -> None:
        if self.ray_workers < 1:
            raise ConfigError(f"ray_workers = {self.ray_workers}: must be 1 or more")
        for path in ("namespace", "context"):
            text = getattr(self, path)
            if text is not None and (not text or "\0" in text):
                raise ConfigError(f"{path} = {text!r}: must not be empty; null leaves it out")


@dataclass(frozen=True, kw_only=True)
class LaunchConfig(JobConfig):
    """A job, and the backend that runs it."""

    backend: str = "local"
    """Where it runs: `local`, `hosts`, `ray`, `slurm` or `kubernetes`. The command line also calls
    it `--on`, which YAML reads as true."""
    python: str | None = None
    """Interpreter on the nodes; None takes the one that launches, or `python` in an image and on a
    Ray cluster."""
    ray: RayConfig = field(default_factory=RayConfig)
    """What only a Ray cluster is asked for."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    """What only Slurm is asked for."""
    hosts: HostsConfig = field(default_factory=HostsConfig)
    """What only machines without a scheduler are asked for."""
    kubernetes: KubernetesConfig = field(default_factory=KubernetesConfig)
    """What only Kubernetes is asked for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.python is not None and (not self.python or "\0" in self.python):
            raise ConfigError(f"python = {self.python!r}: must be a path or the name of a program")
