"""What a Ray job runs: `python -m jobs.launch.ray.driver`, beside the files that were sent along.

It sets the node up as the job's workers are, compares the packages, runs the stage, and writes its
exit status into the job's folder where the cluster sees that: Ray itself forgets the status of a
job that was stopped.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.cli import run_stage
from jobs.launch import packages
from jobs.launch.ray import node
from pipeline.errors import DataError

_CONFIG = "config.yaml"
_PACKAGES = "packages.json"


def main(argv: Sequence[str]) -> int:
    """Runs the job's stage and returns its exit status."""
    described = node.description()
    status = run_stage(lambda _: _run(described), argv)
    _record(Path(described["driver"]["folder"]), status)
    return status


def _run(described: dict[str, Any]) -> int:
    node.enter()
    if (differs := packages.main(str(node.ROOT / _PACKAGES))) != 0:
        return differs
    job = described["driver"]
    words = [f"--config={node.ROOT / _CONFIG}"]
    if job["stage"] == "train":
        return _train(described, words)
    saves = job["stage"] == "sweep"
    _end_at(job["time_limit_s"] - (job["signal_before_end_s"] if saves else 0))
    from importlib import import_module

    status: int = import_module(f"jobs.{job['stage']}").main(
        [*words, *(["--resume"] if saves else [])]
    )
    return status


def _train(described: dict[str, Any], words: list[str]) -> int:
    from jobs.launch.ray.group import Group
    from jobs.launch.ray.train import train
    from pipeline.config import RunConfig, load
    from pipeline.training.run_folder import run_folder
    from pipeline.training.summary import SUMMARY_FILE

    job = described["driver"]
    return train(
        Group(**described["group"]),
        words,
        time_s=job["time_limit_s"] - job["signal_before_end_s"],
        finished=run_folder(load(RunConfig, [node.ROOT / _CONFIG])) / SUMMARY_FILE,
        locked=json.loads((node.ROOT / _PACKAGES).read_text(encoding="utf-8")),
    )


def _end_at(limit_s: float) -> None:
    """Ends this process when its time is over."""

    def end() -> None:
        print(f"error: time_limit_s = {limit_s}: the time is over", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()


def _record(folder: Path, status: int) -> None:
    from data_prep.files import write_whole
    from jobs.launch.job_folder import EXIT_STATUS, SUBMISSION

    # Elsewhere, where the cluster does not see the launching machine's folders, Ray's word counts.
    if not (folder / SUBMISSION).is_file() and not (folder / "job.yaml").is_file():
        return
    try:
        write_whole(folder / EXIT_STATUS, f"{status}\n".encode())
    except DataError as error:
        print(f"warning: the exit status is not written down: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
