"""Training on a Ray cluster: `python -m jobs.launch.ray.train`, run by a Ray job's driver.

python -m jobs.launch.ray.train --nodes=2 --ranks-per-node=8 --gpus-per-node=8 --config=train.yaml

A placement group keeps room for all ranks; when ranks are lost with their node, all are started
again in a new one and go on from the newest checkpoint.

Not Ray Train: its trainer runs a function in threads of Ray's workers, which take no signals; it
starts a run again that failed of its own settings as often as one that lost a node; and stopping it
ends the workers without a save. What is left of it, the placement group, is used directly.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from jobs.launch.ray.group import Group
from pipeline.errors import EXIT_INTERRUPTED, DataError, TrainingError

_RESUME = "--resume"


def main(argv: Sequence[str]) -> int:
    """Trains with the words of `prefixworks train` and returns the ranks' exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.launch.ray.train",
        description="Train on the nodes of a Ray cluster.",
        epilog="All other words are those of `prefixworks train`.",
        allow_abbrev=False,
    )
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    parser.add_argument("--ranks-per-node", type=int, help="default: one a GPU, or one")
    parser.add_argument("--gpus-per-node", type=int, default=0)
    parser.add_argument("--cpus-per-rank", type=int, default=1)
    parser.add_argument("--placement", choices=["nodes", "anywhere"], default="nodes")
    parser.add_argument("--max-restarts", type=int, default=3)
    parser.add_argument("--save-s", type=float, default=300.0, help="time to save and stop")
    parser.add_argument("--logs", help="folder for a log of each rank")
    asked, words = parser.parse_known_args(argv)
    ranks = asked.ranks_per_node or max(1, asked.gpus_per_node)
    if asked.gpus_per_node not in (0, ranks):
        parser.error("each rank takes one GPU: --ranks-per-node must equal --gpus-per-node")
    group = Group(
        nodes=asked.nodes,
        ranks_per_node=ranks,
        gpus_per_rank=1 if asked.gpus_per_node else 0,
        cpus_per_rank=asked.cpus_per_rank,
        placement=asked.placement,
        max_restarts=asked.max_restarts,
        save_s=asked.save_s,
        logs=asked.logs,
    )
    return train(group, words)


def train(
    group: Group,
    words: Sequence[str],
    *,
    time_s: float | None = None,
    finished: Path | None = None,
    locked: Mapping[str, str] | None = None,
) -> int:
    """Trains on the cluster that this process is a job of.

    Args:
        group: The ranks.
        words: Of `prefixworks train`.
        time_s: Seconds after which the ranks are asked to save and stop.
        finished: The file that the run writes last.
        locked: Versions of packages that every node must have.

    Returns:
        0 when the run is finished; 75 when it saved, or had nothing to save; else the status of the
        first rank that failed.

    Raises:
        DataError: there is no cluster.
        TrainingError: ranks cannot be started, or were lost too often.
    """
    from jobs.launch.ray.ranks import NodeLost

    _join()
    asked = _Stop(time_s)
    command = ["-m", "jobs.train", *words, *([] if _RESUME in words else [_RESUME])]
    for attempt in range(group.max_restarts + 1):
        try:
            status, reason = _attempt(group, command, asked, locked or {})
        except NodeLost as error:
            status, reason = 1, f"a node was lost while ranks were started ({error})"
        if finished is not None and status == EXIT_INTERRUPTED and finished.is_file():
            status = 0  # the request came after the last step
        if status == 0 or reason is None or asked():
            return status
        print(f"{reason}; restart {attempt + 1} of {group.max_restarts}", flush=True)
    raise TrainingError(
        f"{reason}, and not started again after {group.max_restarts} restarts;"
        " prefixworks launch resume continues from the newest checkpoint",
        exit_code=status,
    )


def _attempt(
    group: Group, command: Sequence[str], asked: Callable[[], bool], locked: Mapping[str, str]
) -> tuple[int, str | None]:
    """One life of the ranks: their status, and why another one would help."""
    from jobs.launch.ray import ranks
    from jobs.launch.ray.watch import watch

    with ranks.reserved(group, asked) as room:
        if room is None:
            print("error: asked to stop before the first step; nothing is lost", file=sys.stderr)
            return EXIT_INTERRUPTED, None
        started = ranks.start(group, room, command, locked)
        try:
            for rank, place in enumerate(started.places):
                print(f"rank {rank} on {place.address}, node {place.node[:8]}", flush=True)
            ends = watch(started, asked, group.save_s)
        finally:
            ranks.end(started)
    return ends.status(asked=asked()), ends.worth_another_try()


class _Stop:
    """Whether the run is to save and stop: Ray asked by SIGTERM, or its time is over."""

    def __init__(self, time_s: float | None) -> None:
        self._asked = False
        self._until = float("inf") if time_s is None else time.monotonic() + time_s
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def __call__(self) -> bool:
        if not self._asked and time.monotonic() > self._until:
            print("the time limit is near", flush=True)
            self._asked = True
        return self._asked

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True


def _join() -> None:
    import ray

    address = os.environ.get("RAY_ADDRESS", "auto")
    try:
        ray.init(address=address, logging_level=logging.ERROR)
    except Exception as error:
        # Ray says with errors of many kinds that there is no cluster.
        with suppress(Exception):
            ray.shutdown()
        raise DataError(
            f"no Ray cluster at {address}: {error}; this is started by a job of a cluster"
        ) from error


if __name__ == "__main__":
    from jobs.cli import run_stage

    sys.exit(run_stage(main, sys.argv[1:]))
