"""RayConfig: what only a Ray cluster is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from pipeline.errors import ConfigError
from pipeline.tracking.secrets import redact

UPLOAD_LIMIT_MB = 104.0
"""What Ray's Jobs API takes, in MB: 100 MiB."""


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """What a Ray cluster is asked for beside the job's own needs."""

    address: str | None = None
    """Address of the cluster's dashboard, `http://HOST:8265`; None takes RAY_API_SERVER_ADDRESS,
    RAY_ADDRESS, or this machine, as Ray's own commands do."""
    work_folder: str | None = None
    """Absolute folder, on all nodes, that relative paths of the settings are meant from; None takes
    the one that is launched from."""
    excludes: list[str] = field(default_factory=list)
    """Patterns of files that are not sent along, against their paths in the package: `*.md`."""
    max_upload_mb: float = 100.0
    """Largest package of code and settings that is sent, in MB."""
    placement: Literal["nodes", "anywhere"] = "nodes"
    """Where ranks are placed: as many nodes with as many ranks each as the job says, or the same
    ranks on whatever nodes have room."""
    resources: dict[str, float] = field(default_factory=dict)
    """Custom resources that are reserved with each node (`anywhere`: each rank):
    `{"accelerator_type:H100": 0.001}`."""
    driver_resources: dict[str, float] = field(default_factory=dict)
    """Custom resources of the node that runs the stage itself; without any, Ray takes the head."""

    def __post_init__(self) -> None:
        if self.address is not None:
            check_address("address", self.address)
        if self.work_folder is not None and (
            not PurePosixPath(self.work_folder).is_absolute() or "\0" in self.work_folder
        ):
            raise ConfigError(f"work_folder = {self.work_folder!r}: must be an absolute path")
        if not 0 < self.max_upload_mb <= UPLOAD_LIMIT_MB:
            raise ConfigError(
                f"max_upload_mb = {self.max_upload_mb}: must be above 0 and at most"
                f" {UPLOAD_LIMIT_MB:.0f}, which is all that Ray takes"
            )
        for path in ("resources", "driver_resources"):
            for name, amount in getattr(self, path).items():
                _check_resource(path, name, amount)


def check_address(path: str, address: str) -> None:
    """Refuses what is no address of a dashboard.

    Raises:
        ConfigError: it is none, or holds a password, which would be written down.
    """
    scheme, separator, host = address.partition("://")
    if scheme not in ("http", "https") or not separator or not host.strip("/"):
        raise ConfigError(
            f"{path} = {redact(address)!r}: must be the dashboard's address, http://HOST:8265"
        )
    if "@" in host:
        raise ConfigError(
            f"{path}: holds a password, which would be written down; Ray takes a token from"
            " RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token"
        )


def _check_resource(path: str, name: str, amount: float) -> None:
    if name in ("CPU", "GPU", "memory"):
        raise ConfigError(
            f"{path}.{name}: is set by cpus_per_process, accelerators_per_node and memory_gb"
        )
    if not name or not 0 < amount < float("inf"):
        raise ConfigError(f"{path}.{name} = {amount}: must be above 0")
