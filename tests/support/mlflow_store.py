"""Local MLflow stores for tests: the schema is migrated once, which takes seconds, then copied."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from pipeline.tracking.config import StoreLocation
from pipeline.tracking.delivery import open_client


@functools.cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "mlflow.db"
        location = StoreLocation(uri=f"sqlite:///{database}", artifact_root=folder)
        open_client(location).search_experiments()
        return database.read_bytes()


def make_store(folder: Path) -> None:
    """Puts an empty store where a run under folder looks for it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mlflow.db").write_bytes(_migrated())
