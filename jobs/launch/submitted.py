"""What can be done with a job from its submission on."""

from __future__ import annotations

import time
from pathlib import Path

from jobs.launch.backend import Backend, JobState, backend
from jobs.launch.job_folder import (
    CANCELLED,
    EXIT_STATUS,
    Submission,
    find_job,
    held,
    submission,
)
from pipeline.errors import ConfigError, DataError

_LOOK_EVERY_S = 5.0
_FIRST_LOOKS_S = 0.2
"""Short jobs need not wait for the long interval; it is reached by doubling."""


def submit(folder: Path, name: str, command: list[str]) -> None:
    """Sends a written job for the first time.

    Raises:
        ConfigError: it was sent before.
        DataError: the backend refuses it.
    """
    with held(folder):
        if submission(folder) is not None:
            raise ConfigError(
                f"name = {folder.name!r}: the same job, with the same settings and code, was"
                f" submitted before; prefixworks launch status {folder.name} tells of it, and"
                " launch resume runs it again"
            )
        _send(folder, name, command)


def show(job: str, root: str) -> int:
    """Prints how a job stands."""
    folder = find_job(job, root)
    sent, where = _sent(folder)
    print(_line(folder, where.state(folder, sent.job_id)))
    return 0


def logs(job: str, root: str, lines: int) -> int:
    """Prints the last lines of a job's logs."""
    folder = find_job(job, root)
    sent, where = _sent(folder)
    for line in where.logs(folder, sent.job_id, lines):
        print(line)
    return 0


def cancel(job: str, root: str) -> int:
    """Ends a job for good."""
    folder = find_job(job, root)
    with held(folder):
        sent, where = _sent(folder)
        state = where.state(folder, sent.job_id)
        if not state.active:
            print(f"{_line(folder, state)}; there is nothing to cancel")
            return 0
        # First the mark: the script looks at it before it asks for a restart.
        (folder / CANCELLED).touch()
        where.cancel(folder, sent.job_id)
    print(f"{folder.name}: cancelled; prefixworks launch resume {folder.name} would go on")
    return 0


def resume(job: str, root: str) -> int:
    """Submits a job again, as it was frozen."""
    folder = find_job(job, root)
    with held(folder):
        sent, where = _sent(folder)
        state = where.state(folder, sent.job_id)
        if state.active or state.word == "finished":
            raise ConfigError(f"JOB = {job!r}: is {state.word}; there is nothing to resume")
        for mark in (CANCELLED, EXIT_STATUS):
            (folder / mark).unlink(missing_ok=True)
        _send(folder, sent.backend, sent.command)
    print(f"{folder.name}: submitted again; prefixworks launch status {folder.name}")
    return 0


def follow(folder: Path) -> int:
    """Waits until a job has ended, printing each change; the job's exit status, or 1."""
    sent, where = _sent(folder)
    said, pause_s = "", _FIRST_LOOKS_S
    while True:
        state = where.state(folder, sent.job_id)
        if (line := _line(folder, state)) != said:
            print(line, flush=True)
            said = line
        if not state.active:
            return 1 if state.exit_status is None else state.exit_status
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LOOK_EVERY_S)


def _send(folder: Path, name: str, command: list[str]) -> None:
    job_id = backend(name).submit(folder, command)
    try:
        Submission(backend=name, job_id=job_id, command=command).save(folder)
    except DataError as error:
        raise DataError(
            f"the job was submitted as {job_id} on {name}, but that cannot be written down, so it"
            f" has to be looked after by hand: {error}"
        ) from error


def _sent(folder: Path) -> tuple[Submission, Backend]:
    sent = submission(folder)
    if sent is None:
        raise ConfigError(f"JOB = {folder.name!r}: was written but never submitted")
    return sent, backend(sent.backend)


def _line(folder: Path, state: JobState) -> str:
    return f"{folder.name}: {state.word}" + (f", {state.detail}" if state.detail else "")
