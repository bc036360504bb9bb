"""The folder of a submitted job: who has it, how it ended, what it printed."""

from __future__ import annotations

import fcntl
import json
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.files import write_whole
from jobs.launch.backend import JobState
from jobs.launch.freeze import LOGS
from pipeline.errors import EXIT_INTERRUPTED, ConfigError, DataError

SUBMISSION = "submission.json"
CANCELLED = "cancelled"
"""Present once a job was cancelled; its script then asks for no restart."""
EXIT_STATUS = "exit_status"
"""Written by the job's script when it ends for good."""
_LOCK = ".lock"


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job as its backend knows it."""

    backend: str
    job_id: str
    command: list[str]

    def save(self, folder: Path) -> None:
        """Writes it into the job's folder."""
        write_whole(folder / SUBMISSION, (json.dumps(asdict(self), indent=2) + "\n").encode())


def submission(folder: Path) -> Submission | None:
    """How a job was submitted, or None.

    Raises:
        DataError: what is written there is damaged.
    """
    path = folder / SUBMISSION
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = Submission(**values)
        if not (isinstance(found.job_id, str) and isinstance(found.command, list)):
            raise TypeError("fields of another type")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return found


def find_job(job: str, output_root: str) -> Path:
    """The folder of a job that is named by its folder's name or path.

    Raises:
        ConfigError: there is none.
    """
    for folder in (Path(output_root, job), Path(job)):
        if (folder / "job.yaml").is_file():
            return folder.absolute()
    known = sorted(path.parent.name for path in Path(output_root).glob("*/job.yaml"))
    listed = f"; known there: {', '.join(known)}" if known else ""
    raise ConfigError(f"JOB = {job!r}: no such job in {output_root}{listed}")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps others from submitting or resuming the job meanwhile.

    Raises:
        DataError: another process does that now.
    """
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{folder}: another process is submitting this job") from error
        yield


def recorded_end(folder: Path, unknown: str) -> JobState:
    """How a job that runs no more ended, by what its script wrote down.

    Args:
        folder: The job.
        unknown: What to say when it wrote nothing.
    """
    try:
        status = int((folder / EXIT_STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        status = None
    if (folder / CANCELLED).exists() and status != 0:
        return JobState(word="cancelled", exit_status=status)
    if status is None:
        return JobState(word="lost", detail=unknown)
    if status == 0:
        return JobState(word="finished", exit_status=0)
    if status == EXIT_INTERRUPTED:
        return JobState(word="interrupted", detail="its state is saved", exit_status=status)
    return JobState(word="failed", detail=f"exit status {status}", exit_status=status)


def log_lines(folder: Path, lines: int) -> Iterator[str]:
    """The last lines of each log file, under its name."""
    for path in sorted((folder / LOGS).glob("*.log")):
        yield f"==> {path.name} <=="
        with path.open(encoding="utf-8", errors="replace") as stream:
            yield from (line.rstrip("\n") for line in deque(stream, maxlen=lines))
