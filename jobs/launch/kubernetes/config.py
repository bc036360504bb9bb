"""ManifestConfig: a job and the folder that its manifests are written to."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.launch.config import LaunchConfig


@dataclass(frozen=True, kw_only=True)
class ManifestConfig(LaunchConfig):
    """A job as Kubernetes runs it; what only other backends are asked for is not read."""

    output: str = "manifests"
    """Folder for the files; it must not exist or be empty."""
