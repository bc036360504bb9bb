"""Begins and ends the preparation of a dataset: what is done already, and the files for the whole.

The manifest is removed before the first shard changes and written after everything else, so its
presence always means a complete dataset.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from data_prep.claim import LEDGER, Claim, locked
from data_prep.errors import DataError
from data_prep.fields import canonical_json
from data_prep.files import (
    HashedSink,
    file_sha256,
    move_whole,
    not_writable,
    whole_file,
    write_whole,
)
from data_prep.ledger import entry_or_none, ledger_path, read_entry, stands
from data_prep.manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    QUARANTINE_NAME,
    Manifest,
    ShardInfo,
    read_manifest,
)
from data_prep.parquet_rows import RowWriter
from data_prep.plan import DatasetPlan
from data_prep.quarantine import QUARANTINE_SCHEMA, RejectionTable
from data_prep.shard_job import BuiltShard
from data_prep.shards import INDEX_SCHEMA, shard_name

__all__ = [
    "Survey",
    "check_rejects",
    "commit",
    "complete_manifest",
    "finish",
    "locked",
    "survey",
    "withdraw_manifest",
]

_CHECKED_AT_ONCE = 64
"""Shards whose ledger entries are compared in one go."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What of a dataset is there already.

    Attributes:
        todo: Numbers of the shards that have to be made.
        kept: Shards that stand as the plan wants them.
        changed: Shards of todo that were made before, from another input.
        damaged: Shards of todo that were made from this input and are not what they were.
        rejecting: Kept shards that hold rejected records.
    """

    todo: tuple[int, ...]
    kept: int
    changed: int
    damaged: int
    rejecting: tuple[int, ...]


def survey(plan: DatasetPlan, on_checked: Callable[[int], None] | None = None) -> Survey:
    """Finds the shards that have no ledger entry that fits their input and bytes.

    Args:
        plan: The dataset.
        on_checked: Called with the number of shards that were looked at so far.
    """
    todo: list[int] = []
    rejecting: list[int] = []
    found: Counter[str] = Counter()
    numbers = range(plan.shards)
    # Threads, since a shard whose file was touched has to be read, which is the disk's work.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for first in numbers[::_CHECKED_AT_ONCE]:
            some = numbers[first : first + _CHECKED_AT_ONCE]
            digests = [_digest_if_made(plan, number) for number in some]
            for number, state in zip(
                some, pool.map(_state, [plan.folder] * len(some), some, digests), strict=True
            ):
                found[state.removeprefix("rejecting ")] += 1
                if state == "rejecting kept":
                    rejecting.append(number)
                elif state != "kept":
                    todo.append(number)
            if on_checked is not None:
                on_checked(some[-1] + 1)
    return Survey(
        todo=tuple(todo),
        kept=found["kept"],
        changed=found["changed"],
        damaged=found["damaged"],
        rejecting=tuple(rejecting),
    )


def _digest_if_made(plan: DatasetPlan, number: int) -> str | None:
    # A task's digest looks at each of its images: not for shards that have to be made anyway.
    made = ledger_path(plan.folder, number).is_file()
    return plan.task(number).digest if made else None


def _state(folder: Path, number: int, digest: str | None) -> str:
    if digest is None:
        return "missing"
    entry = entry_or_none(folder, number)
    if entry is None:
        return "damaged"
    if entry.digest != digest:
        return "changed"
    if not stands(folder, entry):
        return "damaged"
    return "rejecting kept" if entry.rejections else "kept"


def commit(claim: Claim, built: BuiltShard) -> None:
    """Gives a finished shard and its ledger entry their names, if this run still may.

    Raises:
        DataError: Another run took over, or the folder cannot be written.
    """
    if built.tar is None or built.entry is None:
        return
    claim.check()
    move_whole(Path(built.tar), claim.folder / shard_name(built.number))
    move_whole(Path(built.entry), ledger_path(claim.folder, built.number))


def complete_manifest(plan: DatasetPlan) -> Manifest | None:
    """The manifest, if it, the index and the quarantine stand as this plan would write them."""
    try:
        present = read_manifest(plan.folder)
        wanted = summarize(plan, HashedSink(), HashedSink())
        same = present == wanted and all(
            file_sha256(plan.folder / described["name"]) == described["sha256"]
            for described in (wanted.index, wanted.quarantine)
        )
    except DataError:
        return None
    return present if same else None


def withdraw_manifest(plan: DatasetPlan) -> None:
    """Marks a dataset as unfinished before any of its shards changes."""
    path = plan.folder / MANIFEST_NAME
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise not_writable(path, error) from error


def summarize(plan: DatasetPlan, index: HashedSink, quarantine: HashedSink) -> Manifest:
    """Makes the manifest from the ledger, one entry at a time, and the files that it names.

    Args:
        plan: The dataset; all its shards are made.
        index: Takes the bytes of the index.
        quarantine: Takes the bytes of the quarantine file.

    Raises:
        DataError: A ledger entry is missing or damaged.
    """
    shards: list[ShardInfo] = []
    tasks: Counter[str] = Counter()
    with closing(RejectionTable()) as rejections:
        rejections.add(plan.rejections())
        with RowWriter(index, INDEX_SCHEMA) as rows:
            for number in range(plan.shards):
                entry = read_entry(plan.folder, number)
                shards.append(entry.shard)
                rejections.add(entry.rejections)
                for row in entry.rows:
                    tasks[row.task] += 1
                    rows.add(vars(row))
        with RowWriter(quarantine, QUARANTINE_SCHEMA) as quarantined:
            for rejection in rejections.rows():
                quarantined.add(rejection)
        reasons = dict(sorted(rejections.reasons.items()))
    counts = {"in": plan.count_in, "out": rows.rows, "quarantined": quarantined.rows}
    if counts["in"] != counts["out"] + counts["quarantined"]:
        raise DataError(f"{plan.folder}: samples got lost: {counts}")
    return Manifest(
        name=plan.name,
        seed=plan.seed,
        shard_size=plan.shard_size,
        samples=rows.rows,
        shards=tuple(shards),
        tasks=dict(sorted(tasks.items())),
        counts=counts,
        sources=plan.sources,
        image=plan.policy,
        store_images=plan.store_images,
        index={"name": INDEX_NAME, "sha256": index.sha256},
        quarantine={"name": QUARANTINE_NAME, "sha256": quarantine.sha256, "reasons": reasons},
    )


def finish(plan: DatasetPlan, max_reject_rate: float, claim: Claim | None = None) -> Manifest:
    """Writes index, quarantine and, last, the manifest.

    Args:
        plan: The dataset; all its shards are made.
        max_reject_rate: Share of rejected samples above which it fails.
        claim: What is asked before a file gets its name; None for callers that are alone.

    Raises:
        DataError: More samples were rejected than allowed; the quarantine file says why, and there
            is no manifest. Or a file cannot be written.
    """
    with (
        whole_file(plan.folder / INDEX_NAME) as index,
        whole_file(plan.folder / QUARANTINE_NAME) as quarantine,
    ):
        manifest = summarize(plan, HashedSink(index), HashedSink(quarantine))
        if claim is not None:
            claim.check()
    check_rejects(plan, manifest, max_reject_rate)
    _remove_left_over(plan)
    if claim is not None:
        claim.check()
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
    try:
        for path in _left_over(plan.folder, plan.shards):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise not_writable(plan.folder, error) from error


def _left_over(folder: Path, shards: int) -> Iterator[Path]:
    for path in [*folder.glob("shard-*.tar"), *(folder / LEDGER).glob("shard-*.tar.json")]:
        digits = path.name.removeprefix("shard-").split(".")[0]
        if digits.isdigit() and int(digits) >= shards:
            yield path
