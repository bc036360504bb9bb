"""`prefixworks prepare`: raw images and annotations to WebDataset shards, on Ray.

prefixworks prepare --config prepare.yaml --workers=2
"""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from data_prep.config import PrepareConfig
from data_prep.dataset import (
    check_rejects,
    complete_manifest,
    finish,
    locked,
    unfinished_tasks,
    withdraw_manifest,
)
from data_prep.manifest import Manifest
from data_prep.plan import DatasetPlan, plan_dataset
from data_prep.shard_job import ShardTask
from pipeline.config_reader import parse


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    config, dry_run = parse(
        PrepareConfig,
        argv,
        prog="prefixworks prepare",
        description="Turn raw images and annotations into WebDataset shards with a manifest.",
    )
    if dry_run:
        for name in config.datasets:
            print(describe(plan_dataset(config, name)))
        return 0
    prepare(config, Console())
    return 0


def prepare(config: PrepareConfig, console: Console) -> dict[str, Manifest]:
    """Prepares all datasets of a configuration; finished shards are verified and kept.

    Returns:
        The manifests by dataset.

    Raises:
        DataError: Input or output cannot be used, or too many samples were rejected.
    """
    with ExitStack() as stack:

        @cache
        def workers() -> int:
            # Ray takes seconds to import and to start: once for all datasets, and never for a run
            # that has nothing to do.
            from data_prep.ray_job import cluster

            return stack.enter_context(cluster(config.address, config.workers))

        return {name: _prepare_one(config, name, console, workers) for name in config.datasets}


def _prepare_one(
    config: PrepareConfig, name: str, console: Console, workers: Callable[[], int]
) -> Manifest:
    started = time.monotonic()
    plan = plan_dataset(config, name)
    with locked(plan.folder):
        tasks = unfinished_tasks(plan)
        complete = None if tasks else complete_manifest(plan)
        if complete is None:
            withdraw_manifest(plan)
            if tasks:
                _build(plan, tasks, workers(), console)
            manifest = finish(plan, config.max_reject_rate)
        else:
            manifest = complete
            check_rejects(plan, manifest, config.max_reject_rate)
    counts = manifest.counts
    what = (
        f"{name}: {counts['out']} samples in {len(manifest.shards)} shards, "
        f"{counts['quarantined']} of {counts['in']} quarantined"
    )
    how = (
        "nothing to do"
        if complete is not None
        else f"{len(tasks)} shards made, {len(plan.tasks) - len(tasks)} kept, "
        f"{time.monotonic() - started:.1f} s"
    )
    console.print(f"{what}; {how}", highlight=False, soft_wrap=True)
    return manifest


def _build(plan: DatasetPlan, tasks: list[ShardTask], workers: int, console: Console) -> None:
    from data_prep.ray_job import build_shards

    rejected_so_far = len(plan.rejections)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rejected]} rejected"),
    )
    with Progress(*columns, console=console) as bar:
        line = bar.add_task(
            plan.name,
            total=sum(len(task.records) for task in tasks),
            rate="",
            rejected=rejected_so_far,
        )
        started = time.monotonic()

        def on_shard(samples: int, rejected: int) -> None:
            nonlocal rejected_so_far
            rejected_so_far += rejected
            done = bar.tasks[line].completed + samples + rejected
            rate = f"{done / (time.monotonic() - started):.0f} samples/s"
            bar.update(line, completed=done, rate=rate, rejected=rejected_so_far)

        build_shards(tasks, workers, on_shard)


def describe(plan: DatasetPlan) -> str:
    """What a run would do, in a few lines."""
    tasks = ", ".join(f"{count} {task}" for task, count in plan.by_task.items())
    kept = len(plan.tasks) - len(unfinished_tasks(plan))
    return (
        f"{plan.name} -> {plan.folder}\n"
        f"  samples   {plan.records} ({tasks}), {len(plan.rejections)} annotations rejected\n"
        f"  shards    {len(plan.tasks)} of {plan.shard_size}, {kept} finished already\n"
        f"  images    {plan.image_bytes / 1e6:.1f} MB before fitting to "
        f"{plan.policy['max_side']} px"
    )


if __name__ == "__main__":
    from jobs.cli import run_stage

    sys.exit(run_stage(main, sys.argv[1:]))
