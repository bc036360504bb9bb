"""Begins and ends the preparation of a dataset: what is done already, and the files for the whole.

The manifest is removed before the first shard changes and written after everything else, so its
presence always means a complete dataset.
"""

import fcntl
import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.errors import DataError
from data_prep.fields import canonical_json
from data_prep.files import remove_temporaries, write_whole
from data_prep.manifest import INDEX_NAME, MANIFEST_NAME, QUARANTINE_NAME, Manifest, read_manifest
from data_prep.plan import DatasetPlan
from data_prep.quarantine import Rejection, count_reasons, quarantine_parquet
from data_prep.shard_job import LEDGER, LedgerEntry, ShardTask, ledger_path
from data_prep.shards import IndexRow, index_parquet, shard_name, verify_shard


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a dataset folder for one run; a run that is killed lets go of it.

    Raises:
        DataError: Another run is writing there, or the folder cannot be made.
    """
    try:
        (folder / LEDGER).mkdir(parents=True, exist_ok=True)
        lock = (folder / LEDGER / "lock").open("wb")
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"{folder}: another preparation is writing there") from None
        remove_temporaries(folder)
        remove_temporaries(folder / LEDGER)
        yield


def unfinished_tasks(plan: DatasetPlan) -> list[ShardTask]:
    """The shards that have to be made: those without a ledger entry that fits input and bytes."""
    return [task for task in plan.tasks if _finished(plan.folder, task) is None]


def _finished(folder: Path, task: ShardTask) -> LedgerEntry | None:
    try:
        entry = LedgerEntry.from_bytes(ledger_path(folder, task.number).read_bytes())
        if entry.digest != task.digest:
            return None
        verify_shard(folder, entry.shard)
    except (OSError, ValueError, TypeError, KeyError, DataError):
        # Missing or damaged in any way: the remedy is the same, make the shard again.
        return None
    return entry


def complete_manifest(plan: DatasetPlan) -> Manifest | None:
    """The manifest, if it, the index and the quarantine stand as this plan would write them."""
    try:
        present = read_manifest(plan.folder)
        wanted, files = summarize(plan)
        same = present == wanted and all(
            (plan.folder / name).read_bytes() == content for name, content in files.items()
        )
    except (OSError, DataError):
        return None
    return present if same else None


def withdraw_manifest(plan: DatasetPlan) -> None:
    """Marks a dataset as unfinished before any of its shards changes."""
    (plan.folder / MANIFEST_NAME).unlink(missing_ok=True)


def summarize(plan: DatasetPlan) -> tuple[Manifest, dict[str, bytes]]:
    """Makes the manifest and the files that it names from the ledger.

    Raises:
        DataError: A ledger entry is missing or damaged.
    """
    entries = [_entry(plan.folder, task.number) for task in plan.tasks]
    rows: list[IndexRow] = [row for entry in entries for row in entry.rows]
    rejections: list[Rejection] = list(plan.rejections)
    rejections.extend(r for entry in entries for r in entry.rejections)
    counts = {"in": plan.count_in, "out": len(rows), "quarantined": len(rejections)}
    if counts["in"] != counts["out"] + counts["quarantined"]:
        raise DataError(f"{plan.folder}: samples got lost: {counts}")
    files = {INDEX_NAME: index_parquet(rows), QUARANTINE_NAME: quarantine_parquet(rejections)}
    manifest = Manifest(
        name=plan.name,
        seed=plan.seed,
        shard_size=plan.shard_size,
        samples=len(rows),
        shards=tuple(entry.shard for entry in entries),
        tasks=dict(sorted(Counter(row.task for row in rows).items())),
        counts=counts,
        sources=plan.sources,
        image=plan.policy,
        store_images=plan.store_images,
        index=_named(INDEX_NAME, files),
        quarantine={**_named(QUARANTINE_NAME, files), "reasons": count_reasons(rejections)},
    )
    return manifest, files


def _named(name: str, files: dict[str, bytes]) -> dict[str, str]:
    return {"name": name, "sha256": hashlib.sha256(files[name]).hexdigest()}


def _entry(folder: Path, number: int) -> LedgerEntry:
    path = ledger_path(folder, number)
    try:
        return LedgerEntry.from_bytes(path.read_bytes())
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is missing or damaged: {error}; run prepare again") from error


def finish(plan: DatasetPlan, max_reject_rate: float) -> Manifest:
    """Writes index, quarantine and, last, the manifest.

    Raises:
        DataError: More samples were rejected than allowed; the quarantine file says why, and there
            is no manifest. Or a file cannot be written.
    """
    manifest, files = summarize(plan)
    for name, content in files.items():
        write_whole(plan.folder / name, content)
    check_rejects(plan, manifest, max_reject_rate)
    _remove_left_over(plan)
    write_whole(plan.folder / MANIFEST_NAME, canonical_json(manifest.to_json()) + b"\n")
    return manifest


def check_rejects(plan: DatasetPlan, manifest: Manifest, max_reject_rate: float) -> None:
    """Raises DataError when more samples were rejected than allowed."""
    counts = manifest.counts
    if counts["quarantined"] > max_reject_rate * counts["in"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in manifest.quarantine["reasons"].items())
        raise DataError(
            f"{plan.name}: {counts['quarantined']} of {counts['in']} samples were rejected, above "
            f"max_reject_rate {max_reject_rate:g}: {reasons}; see {plan.folder / QUARANTINE_NAME}"
        )


def _remove_left_over(plan: DatasetPlan) -> None:
    """Removes shards of an earlier, larger input."""
    wanted = {shard_name(task.number) for task in plan.tasks}
    for path in plan.folder.glob("shard-*.tar"):
        if path.name not in wanted:
            path.unlink()
            (plan.folder / LEDGER / f"{path.name}.json").unlink(missing_ok=True)
