"""What run folders still have to tell MLflow, and its delivery after an outage."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlflow.exceptions import MlflowException

from pipeline.errors import RegistryError
from pipeline.tracking.backfill import missing_reports
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.identity import IDENTITY_FILE, RunIdentity, read_identity
from pipeline.tracking.journal import JOURNAL_FOLDER, NODES_FOLDER, Journal
from pipeline.tracking.reports import now_ms
from pipeline.tracking.secrets import redact
from pipeline.training.hooks import METRICS_FILE
from pipeline.training.run_lock import in_use

_PART = 1_000
"""Reports that are taken from the run's own record at once."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run folder as tracking sees it."""

    folder: Path
    status: str
    """`running`, `died` without a word, or how it ended: `finished`, `failed`, `killed`."""
    step: int | None
    """The last step that was reported."""
    run_id: str | None
    """MLflow run; None until the store was first reached."""
    run_name: str
    experiment: str
    uri: str
    """Of the store, password hidden."""
    pending: dict[str, int] = field(default_factory=dict)
    """Undelivered entries by kind, those of all nodes together."""
    refused: int = 0
    """Entries that MLflow will not take."""
    lost: dict[str, int] = field(default_factory=dict)
    """Entries that a full journal has not taken, by kind."""

    @property
    def waiting(self) -> int:
        """Undelivered entries."""
        return sum(self.pending.values())


def find_run_folders(output_dir: str | Path) -> list[Path]:
    """Folders below output_dir whose runs are tracked, by name."""
    found = Path(output_dir).glob(f"*/{JOURNAL_FOLDER}/{IDENTITY_FILE}")
    return sorted(path.parent.parent for path in found)


def look_at(run_dir: str | Path) -> RunRecord:
    """What a run folder has told and still has to tell; MLflow is not asked.

    Raises:
        RegistryError: the folder is not that of a tracked run.
    """
    identity = _identity(run_dir)
    journals = _journals(Path(run_dir))
    pending = Counter(entry["kind"] for each in journals for entry, _ in each.pending())
    lost: Counter[str] = Counter()
    for each in journals:
        lost.update(each.lost)
    return RunRecord(
        folder=Path(run_dir),
        status=_status(Path(run_dir), journals[0]),
        step=_last_step(Path(run_dir)),
        run_id=identity.run_id,
        run_name=identity.run_name,
        experiment=identity.experiment,
        uri=redact(identity.location.uri),
        pending=dict(sorted(pending.items())),
        refused=sum(each.refused for each in journals),
        lost=dict(lost),
    )


def sync_run(run_dir: str | Path, uri: str | None = None) -> int:
    """Delivers what a run still has to tell; repeating it tells nothing twice.

    A run whose process died without a word is said to have been killed, and what only the run's own
    record has of its metrics is taken from there.

    Args:
        run_dir: Folder of the run.
        uri: The address of its store, where that is another now or had a password.

    Returns:
        The number of entries delivered.

    Raises:
        RegistryError: the store is not reached or does not know the run, or another process is
            delivering. What was not delivered is kept.
    """
    if not (Path(run_dir) / JOURNAL_FOLDER / IDENTITY_FILE).is_file():
        return 0
    identity = _identity(run_dir)
    if uri is not None:
        identity.location = replace(identity.location, uri=uri)
    first, *nodes = _journals(Path(run_dir))
    delivery = Delivery(first, identity)
    try:
        sent = delivery.deliver()
        if not in_use(Path(run_dir)):
            sent += _complete(first, delivery)
        if uri is not None:
            identity.save(first.folder)
        for node in nodes:
            sent += Delivery(node, identity, creates=False).deliver()
    except RegistryError:
        raise
    except Exception as error:  # a store has many ways to fail, and all of them leave the journal
        raise RegistryError(_reason(run_dir, identity, error)) from error
    return sent


def _complete(journal: Journal, delivery: Delivery) -> int:
    """Tells what a run that is over had no time or no room to tell."""
    sent = 0
    missing = missing_reports(journal, journal.run_dir / METRICS_FILE)
    # Part by part, since the journal may be smaller than what it had no room for.
    while part := list(itertools.islice(missing, _PART)):
        journal.extend(part)
        sent += delivery.deliver()
    if "metrics" in journal.lost:
        journal.forget_lost("metrics")
        journal.append({"kind": "tags", "values": {"tracking.lost_metrics": "0"}})
    if _last_status(journal) == "running":
        journal.append({"kind": "end", "status": "KILLED", "time_ms": now_ms()})
    return sent + delivery.deliver()


def _reason(run_dir: str | Path, identity: RunIdentity, error: Exception) -> str:
    where = redact(identity.location.uri)
    first = redact(str(error)).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST":
        return f"{run_dir}: {where} has no run {identity.run_id}; is it the store it began in?"
    return f"{run_dir}: {where} did not take the record, which is kept: {first}"


def _identity(run_dir: str | Path) -> RunIdentity:
    identity = read_identity(run_dir)
    if identity is None:
        raise RegistryError(f"{run_dir} is not the folder of a tracked run")
    return identity


def _journals(run_dir: Path) -> list[Journal]:
    nodes = sorted((run_dir / JOURNAL_FOLDER / NODES_FOLDER).glob("*/"))
    return [Journal(run_dir), *(Journal(run_dir, node=each.name) for each in nodes)]


def _status(run_dir: Path, journal: Journal) -> str:
    if in_use(run_dir):
        return "running"
    last = _last_status(journal)
    return "died" if last == "running" else last


def _last_status(journal: Journal) -> str:
    status = "running"
    for entry in journal.entries():
        if entry["kind"] == "begin":
            status = "running"
        elif entry["kind"] == "end":
            status = str(entry.get("status", "finished")).lower()
    return status


def _last_step(run_dir: Path) -> int | None:
    step = None
    for line in _lines(run_dir / METRICS_FILE):
        try:
            step = int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return step


def _lines(path: Path) -> Iterator[str]:
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from file
