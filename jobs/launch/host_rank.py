"""One rank on one host: `python -m jobs.launch.host_rank FOLDER`, started by DeepSpeed's launcher.

It takes what the job's folder says, which no shell has read, and trains; it asks itself to stop
when a file there says so, or when its time is over.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from jobs.cli import run_stage
from jobs.launch import packages
from jobs.launch.freeze import LOGS, PACKAGES
from jobs.launch.hosts import RANK_FILE, STOP_FILE
from jobs.launch.secrets_file import read_secrets

_LOOK_EVERY_S = 1.0


def main(argv: Sequence[str]) -> int:
    """Trains as one rank and returns its exit status."""
    folder = Path(argv[0])
    job = json.loads((folder / RANK_FILE).read_text(encoding="utf-8"))
    _talk_into(folder / LOGS / f"rank-{os.environ['RANK']}.log")
    for path in job["secrets"]:
        os.environ.update(read_secrets(Path(path)))
    os.environ.update(job["environment"])
    if (differs := packages.main(str(folder / PACKAGES))) != 0:
        return differs
    os.chdir(job["working_dir"])
    limits = (job["stop_after_s"], job["end_after_s"])
    threading.Thread(target=_watch, args=(folder / STOP_FILE, *limits), daemon=True).start()
    from jobs.train import main as train

    return train(job["words"])


def _talk_into(log: Path) -> None:
    """Has this process, and all that it starts, write into a file."""
    number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(number, 1)
    os.dup2(number, 2)
    os.close(number)


def _watch(stop: Path, stop_after_s: float, end_after_s: float) -> None:
    """Asks this process to save and stop, once: the ranks agree on the step by themselves.

    One that hangs does not save; nobody else is there to end it.
    """
    until = time.monotonic() + stop_after_s
    while time.monotonic() < until and not stop.exists():
        time.sleep(_LOOK_EVERY_S)
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(end_after_s)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
