"""Slurm's own commands: submitting, asking, cancelling."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from jobs.launch import commands
from jobs.launch.backend import JobState
from jobs.launch.job_folder import recorded_end
from pipeline.errors import DataError

_LONGEST_S = 60.0
_ID = re.compile(r"(\d+)(?:;.*)?")
_WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD"}
_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}


def submit(command: list[str]) -> str:
    """Runs sbatch; the number that it gives the job.

    Raises:
        DataError: sbatch is missing, refuses the job or does not answer.
    """
    said = run(command).strip()
    found = _ID.fullmatch(said)
    if found is None:
        raise DataError(f"sbatch answered {said!r}, which is no number of a job")
    return found[1]


def state(folder: Path, job_id: str) -> JobState:
    """How a job stands: by the queue while it is there, then by what its script wrote down.

    Raises:
        DataError: Slurm does not answer.
    """
    # Asked for one job that is gone, squeue fails; for all of a user's, it never does.
    queue = run(["squeue", "--noheader", "--me", "--states=all", "--format=%A|%T|%r"])
    for line in queue.splitlines():
        number, _, rest = line.strip().partition("|")
        word, _, reason = rest.partition("|")
        if number != job_id:
            continue
        detail = f"Slurm job {job_id}: {word}" + (f" ({reason})" if reason != "None" else "")
        present = in_queue(word)
        return _ended(folder, detail) if present is None else JobState(word=present, detail=detail)
    return _ended(folder, f"Slurm job {job_id} is gone; sacct -j {job_id} may know why")


def in_queue(word: str) -> Literal["waiting", "running"] | None:
    """What Slurm's word for a job's state means; None where the job has ended."""
    if word in _WAITING:
        return "waiting"
    return "running" if word in _RUNNING else None


def cancel(job_id: str) -> None:
    """Ends a job.

    Raises:
        DataError: Slurm refuses or does not answer.
    """
    run(["scancel", job_id])


def _ended(folder: Path, detail: str) -> JobState:
    return recorded_end(folder, f"{detail}; its script wrote no end down")


def run(command: list[str]) -> str:
    """Runs one of Slurm's commands; what it printed.

    Raises:
        DataError: it is missing, fails or does not answer.
    """
    advice = "launch where Slurm's commands are installed"
    return commands.run(command, missing=advice, longest_s=_LONGEST_S)
