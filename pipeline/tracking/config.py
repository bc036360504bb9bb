"""Where runs are recorded and prompts are registered.

Importing this module is cheap: MLflow itself is only imported by the modules that speak to it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.tracking.secrets import restore

URI_VARIABLE = "MLFLOW_TRACKING_URI"
"""MLflow's own environment variable; it applies where a recipe names no store."""

DEFAULT_OUTPUT_DIR = "runs"
"""Folder of the runs, hence of the local store, where nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """How a run is recorded in MLflow."""

    enabled: bool = True
    """Record the run; without it the run folder's own files remain."""
    uri: str | None = None
    """MLflow tracking URI. None: MLFLOW_TRACKING_URI, else `mlflow.db` (sqlite) in output_dir."""
    experiment: str | None = None
    """MLflow experiment that the run belongs to, created when missing. None names what is learned
    and on which base, such as `grounding on ofa-micro`: such runs are worth comparing."""
    run_name: str | None = None
    """Name of the MLflow run. None: the run's own name with method, learning rate and seed."""
    parent_run: str | None = None
    """Sweep that the run is a child of: the id of an MLflow run, or a name of your choice; the
    parent of that name is made in the experiment when missing."""
    artifact_root: str | None = None
    """Folder or URI for files of a new experiment. None: `mlartifacts` beside a local store, the
    server's own choice otherwise."""
    pictures: int = 8
    """Validation samples whose answers are drawn at each validation, always the same ones; 0 draws
    none."""
    system_metrics_s: float = 10.0
    """Seconds between two looks at CPU, memory and GPUs of every node; 0 for none."""
    delivery_s: float = 2.0
    """Least pause between two deliveries; what a run tells meanwhile goes in one call."""
    request_timeout_s: int = 10
    """Longest wait for one answer of a tracking server."""
    retry_s: float = 30.0
    """Pause after a failed delivery; the journal keeps what is not yet delivered."""
    close_timeout_s: float = 60.0
    """Longest that the end of a run waits for the journal to be delivered."""
    journal_mb: float = 256.0
    """Most that the journal of undelivered entries holds, in MB of 10^6 bytes. When it is full,
    metrics and pictures are left out, with a warning and a count."""

    def __post_init__(self) -> None:
        for name in ("pictures", "system_metrics_s", "delivery_s", "retry_s", "close_timeout_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.request_timeout_s < 1:
            raise ValueError(f"request_timeout_s must be at least 1, not {self.request_timeout_s}")
        if self.journal_mb < 1:
            raise ValueError(f"journal_mb must be at least 1, not {self.journal_mb}")
        for name in ("experiment", "run_name", "parent_run"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise ValueError(f"{name} must not be empty; leave it out for the default")


@dataclass(frozen=True, kw_only=True)
class StoreLocation:
    """A tracking store and model registry, resolved to absolute places."""

    uri: str
    """MLflow tracking URI, also used as registry URI."""
    artifact_root: str | None
    """Where a new experiment puts its files; None leaves it to the server."""


def resolve_store(config: TrackingConfig, output_dir: str | Path) -> StoreLocation:
    """Settles which MLflow store a run under output_dir uses.

    Args:
        config: uri and artifact_root are read.
        output_dir: Folder of the runs; a local store lives in it.

    Returns:
        The store; sqlite paths are absolute, so a process in another folder finds the same file.
    """
    root = Path(output_dir).resolve()
    announced = os.environ.get(URI_VARIABLE)
    uri = config.uri or announced or f"sqlite:///{root / 'mlflow.db'}"
    uri = restore(uri, announced)
    database = sqlite_file(uri)
    if database is None:
        return StoreLocation(uri=uri, artifact_root=config.artifact_root)
    artifacts = config.artifact_root or str(database.parent / "mlartifacts")
    if "://" not in artifacts:
        artifacts = str(Path(artifacts).resolve())
    return StoreLocation(uri=f"sqlite:///{database}", artifact_root=artifacts)


def sqlite_file(uri: str) -> Path | None:
    """The absolute path of a sqlite store's file, or None for any other kind of store."""
    scheme = "sqlite:///"
    if not uri.startswith(scheme):
        return None
    return Path(uri.removeprefix(scheme)).resolve()
