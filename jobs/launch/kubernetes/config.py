"""ManifestConfig: a job and the kind of manifest that it becomes."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.launch.job import JobConfig
from jobs.launch.kubernetes.checks import Kind


@dataclass(frozen=True, kw_only=True)
class ManifestConfig(JobConfig):
    """A job as Kubernetes runs it."""

    kind: Kind = "indexed-job"
    """What it becomes; all but indexed-job need their operator in the cluster."""
    ray_workers: int = 1
    """Pods of a Ray cluster beside its head, for rayjob and ray-cluster."""
    output: str = "manifests"
    """Folder for the files; it must not exist or be empty."""
