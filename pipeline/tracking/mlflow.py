"""The training hook that records a run in MLflow.

The hook writes journal entries and nothing else; a thread delivers them (see delivery.py). So a
tracking server that is slow, down or refusing costs training one line in a file per entry.
"""

from __future__ import annotations

import atexit
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config_tree import plain
from pipeline.errors import DataError, RegistryError
from pipeline.tracking.config import TrackingConfig, resolve_store
from pipeline.tracking.delivery import Courier, Delivery
from pipeline.tracking.identity import RunIdentity, new_identity, read_identity
from pipeline.tracking.journal import Entry, Journal
from pipeline.tracking.provenance import (
    dataset_entry,
    flatten,
    git_state,
    library_versions,
)

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.training.summary import TrainingResult

log = logging.getLogger(__name__)

PICTURES_FOLDER = "pictures"
"""Folder of a run whose PNG files are recorded at its end."""


class MlflowHook:
    """Records one training run: parameters, metrics, data sets, code version, files."""

    def __init__(self) -> None:
        self._journal: Journal | None = None
        self._courier: Courier | None = None

    def on_start(self, run_dir: Path, config: RunConfig) -> None:
        """Opens the journal, or continues it when the run folder has one, and tells who runs."""
        try:
            journal = Journal(run_dir)
            identity = read_identity(journal.run_dir) or _introduce(journal, config)
        except (OSError, RegistryError) as error:
            log.warning("this run is not recorded, training goes on: %s", error)
            return
        delivery = Delivery(journal, identity, config.tracking.request_timeout_s)
        self._journal = journal
        self._courier = Courier(delivery, config.tracking)
        atexit.register(self._abandon)
        for entry in _opening(journal.run_dir, config):
            self._tell(entry)

    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records training metrics of a step."""
        self._tell(_metrics(step, metrics))

    def on_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records validation metrics of a step."""
        self._tell(_metrics(step, metrics))

    def on_end(self, result: TrainingResult) -> None:
        """Records what came out, with the run's pictures, and waits a bounded time for delivery."""
        if self._journal is None or self._courier is None:
            return
        best = {f"best/{name}": value for name, value in result.best_metrics.items()}
        self._tell(_metrics(result.final_step, best | {"run/seconds": result.seconds}))
        tags = {
            "base.fingerprint.before": result.fingerprint_before,
            "base.fingerprint.after": result.fingerprint_after,
        }
        self._tell({"kind": "tags", "values": tags})
        for picture in sorted((self._journal.run_dir / PICTURES_FOLDER).glob("*.png")):
            self._tell(_artifact(self._journal.run_dir, picture, PICTURES_FOLDER))
        self._close("FINISHED")

    def _abandon(self) -> None:
        """Says that the process ended before the run did; a resumed run is RUNNING again."""
        self._close("KILLED")

    def _close(self, status: str) -> None:
        atexit.unregister(self._abandon)
        self._tell({"kind": "end", "status": status, "time_ms": _now_ms()})
        if self._courier is not None:
            self._courier.close()
        self._journal = self._courier = None

    def _tell(self, entry: Entry) -> None:
        if self._journal is None or self._courier is None:
            return
        try:
            self._journal.append(entry)
        except OSError as error:
            log.warning("the rest of this run is not recorded, training goes on: %s", error)
            self._journal = None
        self._courier.notify()


def record_evaluation(
    run_dir: str | Path,
    metrics: Mapping[str, float],
    *,
    step: int = 0,
    dataset: str | None = None,
    pictures: Sequence[Path] = (),
) -> bool:
    """Adds an evaluation to the MLflow run of a run folder.

    Args:
        run_dir: Folder of the training run.
        metrics: Scores by `namespace/name`.
        step: Training step that was evaluated.
        dataset: Folder of the dataset that was evaluated on.
        pictures: PNG files of predictions.

    Returns:
        Whether MLflow has it now. It is False for a run that is not tracked, and when the store is
        not reached: the entries then wait in the journal, and a warning says so.
    """
    identity = read_identity(run_dir)
    if identity is None:
        return False
    journal = Journal(run_dir)
    if dataset is not None:
        for entry in _inputs({"evaluation": [dataset]}):
            journal.append(entry)
    journal.append(_metrics(step, {f"evaluation/{name}": v for name, v in metrics.items()}))
    for picture in pictures:
        journal.append(_artifact(journal.run_dir, picture, PICTURES_FOLDER))
    courier = Courier(Delivery(journal, identity), TrackingConfig())
    return courier.close()


def sync_run(run_dir: str | Path) -> int:
    """Delivers what a run's journal still holds.

    Returns:
        The number of entries delivered.

    Raises:
        Exception: whatever MLflow raises when the store is not reached.
    """
    identity = read_identity(run_dir)
    if identity is None:
        return 0
    return Delivery(Journal(run_dir), identity).deliver()


def _introduce(journal: Journal, config: RunConfig) -> RunIdentity:
    location = resolve_store(config.tracking, config.output_dir)
    identity = new_identity(config.name, config.tracking.experiment, location)
    identity.save(journal.folder)
    return identity


def _opening(run_dir: Path, config: RunConfig) -> list[Entry]:
    tags = {f"library.{name}": version for name, version in library_versions().items()}
    tags |= git_state() | {"mlflow.source.name": "prefixworks train", "run.folder": str(run_dir)}
    entries: list[Entry] = [
        {"kind": "begin"},
        {"kind": "params", "values": flatten(plain(config))},
        {"kind": "tags", "values": tags},
    ]
    entries += _inputs({"train": config.data.train, "validation": config.data.validation})
    resolved = run_dir / "config.yaml"
    if resolved.is_file():
        entries.append(_artifact(run_dir, resolved, None))
    return entries


def _inputs(folders: Mapping[str, Sequence[str]]) -> list[Entry]:
    entries: list[Entry] = []
    for context, names in folders.items():
        for folder in names:
            try:
                entries.append(dataset_entry(folder, context))
            except DataError as error:
                # The reader of the data will stop the run, if it must; the record never does.
                log.warning("the %s data are not recorded: %s", context, error)
    return entries


def _metrics(step: int, metrics: Mapping[str, float]) -> Entry:
    values = {
        name: value if math.isfinite(value) else str(value) for name, value in metrics.items()
    }
    return {"kind": "metrics", "step": step, "time_ms": _now_ms(), "values": values}


def _artifact(run_dir: Path, path: Path, to: str | None) -> Entry:
    full = path.resolve()
    inside = full.is_relative_to(run_dir)
    return {
        "kind": "artifact",
        "path": str(full.relative_to(run_dir) if inside else full),
        "to": to,
    }


def _now_ms() -> int:
    return int(time.time() * 1000)
