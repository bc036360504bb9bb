"""The MLflow store that runs are recorded in."""

from __future__ import annotations

import os
import time
from pathlib import Path

from jobs.doctor.check import Check, within
from jobs.doctor.folders import existing
from pipeline.errors import RegistryError
from pipeline.tracking.config import TrackingConfig, resolve_store, sqlite_file
from pipeline.tracking.secrets import redact


def check_tracking(uri: str | None, output_dir: Path, limit_s: float = 20.0) -> Check:
    """Whether the store answers, and takes this user.

    A store that is only named by the environment costs a run nothing when it is down, since what it
    missed is delivered later: that is a warning. One that was asked for has to answer.

    Args:
        uri: Tracking URI. None takes MLFLOW_TRACKING_URI, else the local store in output_dir.
        output_dir: Folder of the runs.
        limit_s: Longest wait, in seconds.
    """
    start = time.monotonic()
    try:
        location = resolve_store(TrackingConfig(uri=uri), output_dir)
        database = sqlite_file(location.uri)
        if database is not None:
            return _local(database)
        # Here, since MLflow takes seconds to import.
        from pipeline.tracking.probe import probe_store

        experiments = within(limit_s, lambda: probe_store(location, max(1, int(limit_s / 4))))
    except RuntimeError as error:  # what paths make of links in a circle
        return Check("MLflow", "failed", str(error), "choose another --output-dir")
    except (RegistryError, TimeoutError) as error:
        found = redact(f"{uri or os.environ.get('MLFLOW_TRACKING_URI', '')}: {error}")
        advice = (
            "start it or check the address and MLFLOW_TRACKING_USERNAME and _PASSWORD; runs keep"
            " what it misses, and `prefixworks runs sync` delivers it"
        )
        return Check("MLflow", "failed" if uri else "warning", found, advice)
    spent = time.monotonic() - start
    return Check("MLflow", "ok", f"{redact(location.uri)} answers in {spent:.1f} s, {experiments}")


def _local(database: Path) -> Check:
    if database.is_file():
        if os.access(database, os.R_OK | os.W_OK):
            return Check("MLflow", "ok", f"the local store {database}")
        advice = "give this user the file, or choose another --output-dir"
        return Check("MLflow", "failed", f"{database} cannot be written", advice)
    try:
        possible = not database.exists() and os.access(existing(database.parent), os.W_OK)
    except OSError:
        possible = False
    if not possible:
        advice = "choose another --output-dir or --tracking"
        return Check("MLflow", "failed", f"{database} cannot be made", advice)
    return Check("MLflow", "ok", f"a local store, {database}, which the first run makes")
