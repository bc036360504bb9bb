"""`prefixworks prepare`: raw images and annotations to WebDataset shards, on Ray.

prefixworks prepare --config prepare.yaml --workers=2
"""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from rich.console import Console

from data_prep.claim import Claim
from data_prep.config import PrepareConfig
from data_prep.dataset import (
    check_rejects,
    commit,
    complete_manifest,
    finish,
    locked,
    survey,
    withdraw_manifest,
)
from data_prep.manifest import Manifest
from data_prep.plan import DatasetPlan, plan_dataset
from data_prep.shard_job import BuiltShard, peak_bytes
from data_prep.sources import check_sources
from jobs.prepare_progress import Steps
from jobs.prepare_report import Work, describe, outlook, print_table, summary_line
from pipeline.config_reader import parse

Workers = Callable[[], Callable[[], int]]
"""Joins the cluster when first called; what it gives says how many shards to hand out at once."""


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    config, dry_run = parse(
        PrepareConfig,
        argv,
        prog="prefixworks prepare",
        description="Turn raw images and annotations into WebDataset shards with a manifest.",
    )
    if dry_run:
        check_sources(config)
        for name in config.datasets:
            with plan_dataset(config, name, keep=False) as plan:
                print(describe(plan, survey(plan)))
        return 0
    prepare(config, Console())
    return 0


def prepare(config: PrepareConfig, console: Console, *, retry: bool = False) -> dict[str, Manifest]:
    """Prepares all datasets of a configuration; finished shards are verified and kept.

    Args:
        config: What to prepare.
        console: Where progress and results are shown.
        retry: Try the rejected records of finished shards again, too.

    Returns:
        The manifests by dataset.

    Raises:
        DataError: Input or output cannot be used, or too many samples were rejected.
    """
    check_sources(config)
    done: dict[str, tuple[Manifest, Work]] = {}
    with ExitStack() as stack:

        @cache
        def workers() -> Callable[[], int]:
            # Ray takes seconds to import and to start: once for all datasets, and never for a run
            # that has nothing to do.
            from data_prep.ray_job import cluster

            return stack.enter_context(cluster(config.address, config.workers))

        for name in config.datasets:
            done[name] = _prepare_one(config, name, console, workers, retry)
    print_table(console, done)
    peaks = f"peak memory: {peak_bytes() / 1e6:.0f} MB in this process"
    worker = max(work.peak_bytes for _, work in done.values())
    peaks += f", {worker / 1e6:.0f} MB in a worker" if worker else ""
    console.print(peaks, highlight=False, soft_wrap=True)
    return {name: manifest for name, (manifest, _) in done.items()}


def _prepare_one(
    config: PrepareConfig, name: str, console: Console, workers: Workers, retry: bool
) -> tuple[Manifest, Work]:
    started = time.monotonic()
    work = Work()
    with (
        locked(Path(config.output_dir, name)) as claim,
        Steps(console, name) as steps,
        _planned(config, name, steps) as plan,
    ):
        steps.begin("checking shards", plan.shards)
        found = survey(plan, lambda done: steps.advance(done, "shards"))
        for line in outlook(plan, found):
            console.print(f"{name}: {line}", highlight=False, soft_wrap=True)
        numbers = sorted({*found.todo, *(found.rejecting if retry else ())})
        if numbers:
            claim.begin()
            steps.begin("joining the cluster")
            _build(plan, numbers, claim, workers(), steps, work, retry)
        manifest = _ended(plan, claim, work, config.max_reject_rate)
        work.seconds = time.monotonic() - started
        line = summary_line(plan, manifest, work)
    console.print(line, highlight=False, soft_wrap=True)
    return manifest, work


def _planned(config: PrepareConfig, name: str, steps: Steps) -> DatasetPlan:
    steps.begin("reading annotations")
    read: dict[str, int] = {}

    def on_progress(source: str, count: int) -> None:
        read[source] = count
        steps.advance(sum(read.values()), "annotations")

    return plan_dataset(config, name, on_progress=on_progress)


def _ended(plan: DatasetPlan, claim: Claim, work: Work, max_reject_rate: float) -> Manifest:
    """The manifest, after the files of the whole dataset were written where that was needed."""
    manifest = None if work.made else complete_manifest(plan)
    if manifest is not None:
        check_rejects(plan, manifest, max_reject_rate)
        return manifest
    work.finished = True
    claim.begin()
    withdraw_manifest(plan)
    return finish(plan, max_reject_rate, claim)


def _build(
    plan: DatasetPlan,
    numbers: Sequence[int],
    claim: Claim,
    capacity: Callable[[], int],
    steps: Steps,
    work: Work,
    retry: bool,
) -> None:
    from data_prep.ray_job import build_shards

    started = time.monotonic()
    steps.begin("building shards", sum(map(plan.records_in, numbers)))

    def on_shard(built: BuiltShard) -> None:
        if built.tar is not None:
            withdraw_manifest(plan)
            commit(claim, built)
        work.add(built)
        steps.advance(work.samples + work.rejected, "samples", work.rejected)

    build_shards(
        (plan.task(number) for number in numbers),
        claim.staging,
        capacity,
        on_shard,
        only_if_recovered=retry,
    )
    work.building_s = time.monotonic() - started


if __name__ == "__main__":
    from jobs.cli import run_stage

    sys.exit(run_stage(main, sys.argv[1:]))
