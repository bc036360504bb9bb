"""Where runs are recorded and prompts are registered.

Importing this module is cheap: MLflow itself is only imported by the modules that speak to it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

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
    experiment: str = "prefixworks"
    """MLflow experiment that the run belongs to; created when missing."""
    artifact_root: str | None = None
    """Folder or URI for files of a new experiment. None: `mlartifacts` beside a local store, the
    server's own choice otherwise."""
    request_timeout_s: int = 10
    """Longest wait for one answer of a tracking server."""
    retry_s: float = 30.0
    """Pause after a failed delivery; the journal keeps what is not yet delivered."""
    close_timeout_s: float = 60.0
    """Longest that the end of a run waits for the journal to be delivered."""


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
    uri = config.uri or os.environ.get(URI_VARIABLE) or f"sqlite:///{root / 'mlflow.db'}"
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
