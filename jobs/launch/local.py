"""Jobs on this machine: detached from the terminal, with a time limit and a log."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil

from jobs.launch.backend import JobState, Rendered
from jobs.launch.freeze import LOGS, FrozenJob
from jobs.launch.job_folder import log_lines, recorded_end
from jobs.launch.script import SCRIPT, interpreter, opening, packages_checked, quoted
from pipeline.errors import ConfigError, DataError

_LOG = "job.log"

# Started from inside a job of a scheduler, the run would take itself for one of its ranks.
_RANK_VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)


class LocalBackend:
    """Runs jobs as processes of this machine.

    What was saved goes on by `launch resume` only: whoever asks a process of a workstation to stop
    wants it to stop.
    """

    def render(self, frozen: FrozenJob) -> Rendered:
        """A script that runs the stage under a time limit."""
        launch = frozen.launch
        refused = {
            "nodes": launch.nodes if launch.nodes > 1 else None,
            "image": launch.image,
            "volumes": [volume.mount for volume in launch.volumes] or None,
        }
        for path, value in refused.items():
            if value is not None:
                raise ConfigError(
                    f"{path} = {value!r}: backend = local runs what is installed here, alone"
                )
        work = [*_limit(frozen), *frozen.command(interpreter(frozen))]
        lines = [
            *opening(frozen, 'kill -TERM "$step";'),
            f"unset {' '.join(_RANK_VARIABLES)}",
            *packages_checked(frozen),
            f"{quoted(work)} &",
            "step=$!",
            "wait_for_step",
            'finish "$status"',
        ]
        return Rendered(
            files={SCRIPT: "\n".join(lines) + "\n"},
            command=["bash", str(frozen.folder / SCRIPT)],
        )

    def submit(self, folder: Path, command: list[str]) -> str:
        """Starts the script in a session of its own; process number and its time of birth."""
        try:
            with (folder / LOGS / _LOG).open("ab") as log:
                started = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            raise DataError(f"{folder}: the job cannot be started: {error.strerror}") from error
        return f"{started.pid}:{psutil.Process(started.pid).create_time()}"

    def state(self, folder: Path, job_id: str) -> JobState:
        """Running while its script does; then what that wrote down."""
        if (process := _process(job_id)) is not None:
            return JobState(word="running", detail=f"process {process.pid}")
        return recorded_end(
            folder, "its script was killed; launch resume continues from what it saved"
        )

    def cancel(self, folder: Path, job_id: str) -> None:
        """Asks the run to save and stop."""
        if (process := _process(job_id)) is not None:
            os.kill(process.pid, signal.SIGTERM)

    def logs(self, folder: Path, job_id: str, lines: int) -> Iterator[str]:
        """The last lines of the job's log."""
        return log_lines(folder, lines)


def _limit(frozen: FrozenJob) -> list[str]:
    launch = frozen.launch
    asks_after_s = launch.time_limit_s - (launch.signal_before_end_s if launch.saves else 0)
    # --foreground: only the stage itself gets the signal, since it tells its ranks by itself, and
    # DeepSpeed's launcher would end them without a word.
    return [
        *("timeout", "--foreground", "--preserve-status"),
        f"--signal={'USR1' if launch.saves else 'TERM'}",
        *(f"--kill-after={launch.signal_before_end_s}", str(asks_after_s)),
    ]


def _process(job_id: str) -> psutil.Process | None:
    """The script's process, unless its number belongs to another one by now."""
    number, _, born = job_id.partition(":")
    try:
        process = psutil.Process(int(number))
        same = abs(process.create_time() - float(born)) < 0.01
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.NoSuchProcess, ValueError):
        return None


BACKEND = LocalBackend()
