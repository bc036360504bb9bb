"""`prefixworks data replay`: try the rejected samples of prepared datasets again, after a repair.

prefixworks data replay --config prepare.yaml

Shards without rejected samples are left alone, and those whose samples would be rejected again for
the same reason are, too. What is left behind equals what a whole new preparation would write.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from data_prep.config import PrepareConfig
from data_prep.dataset import survey
from data_prep.errors import DataError
from data_prep.manifest import INDEX_NAME, QUARANTINE_NAME
from data_prep.plan import plan_dataset
from jobs.prepare import prepare
from pipeline.config_reader import parse

_SHOWN = 10
"""Uids of recovered samples that are named."""


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    config, dry_run = parse(
        PrepareConfig,
        argv,
        prog="prefixworks data replay",
        description="Try the rejected samples of prepared datasets again, after a repair.",
    )
    folders = {name: Path(config.output_dir, name) for name in config.datasets}
    before = {name: _quarantined(folder) for name, folder in folders.items()}
    if dry_run:
        for name, rejected in before.items():
            print(_outlook(config, name, rejected))
        return 0
    console = Console()
    try:
        prepare(config, console, retry=True)
    finally:
        # Also when too many samples are still rejected: what was recovered is recovered.
        for name, rejected in before.items():
            for line in _recovered(folders[name], rejected):
                console.print(f"{name}: {line}", highlight=False, soft_wrap=True)
    return 0


def _outlook(config: PrepareConfig, name: str, rejected: dict[str, str]) -> str:
    with plan_dataset(config, name, keep=False) as plan:
        found = survey(plan)
        return (
            f"{name}: {len(rejected)} samples are quarantined ({_counted(rejected.values())}); "
            f"{len(found.rejecting)} finished shards hold rejected samples, which are tried again; "
            f"{len(found.todo)} of {plan.shards} shards are made, since their input changed"
        )


def _quarantined(folder: Path) -> dict[str, str]:
    """Reasons by uid."""
    path = folder / QUARANTINE_NAME
    if not path.is_file():
        raise DataError(f"{path} does not exist: nothing to replay, run prefixworks prepare first")
    return {row["uid"]: row["reason"] for row in _rows(path, ["uid", "reason"])}


def _recovered(folder: Path, before: dict[str, str]) -> Iterator[str]:
    """What became of the samples that had been rejected."""
    if not (folder / INDEX_NAME).is_file() or not (folder / QUARANTINE_NAME).is_file():
        return
    if not before:
        yield "nothing was quarantined"
        return
    uids = sorted(row["uid"] for row in _rows(folder / INDEX_NAME, ["uid"]) if row["uid"] in before)
    still = [uid for uid in _quarantined(folder) if uid in before]
    reasons = _counted(before[uid] for uid in uids)
    yield f"{len(uids)} of {len(before)} rejected samples recovered ({reasons})"
    for uid in uids[:_SHOWN]:
        yield f"  {uid}"
    if len(uids) > _SHOWN:
        yield f"  and {len(uids) - _SHOWN} more"
    gone = len(before) - len(uids) - len(still)
    if gone:
        yield f"{gone} are no longer in the annotations"


def _counted(reasons: Iterable[str]) -> str:
    counts = sorted(Counter(reasons).items())
    return ", ".join(f"{count} {reason}" for reason, count in counts) or "none"


def _rows(path: Path, columns: list[str]) -> Iterator[dict[str, str]]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=columns):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


if __name__ == "__main__":
    from jobs.cli import run_stage

    sys.exit(run_stage(main, sys.argv[1:]))
