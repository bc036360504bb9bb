"""Jobs of Slurm: what sbatch is asked for, and the script that it runs on the first node.

A run that was asked to stop saves, and all of its ranks exit with status 75; the script puts the
job back into the queue then, and only then. So a job that finishes while a signal arrives is not
run twice. sbatch gets its options as arguments, not as `#SBATCH` lines, which know no quoting.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from jobs.launch import slurm_array, slurm_commands
from jobs.launch.backend import JobState, Rendered
from jobs.launch.freeze import LOGS, FrozenJob
from jobs.launch.job_folder import CANCELLED, log_lines
from jobs.launch.script import SCRIPT, opening, packages_checked
from jobs.launch.slurm_step import HOSTS, check_step, forward, step
from pipeline.errors import EXIT_INTERRUPTED, ConfigError

_JOB_LOG = "job.log"

# Above what services use, below where Linux takes the ports of outgoing connections from.
_PORT = "$((15000 + SLURM_JOB_ID % 15000))"


class SlurmBackend:
    """Submits through sbatch and asks through squeue, scontrol and scancel.

    A sweep is an array job, with a task for each trial.
    """

    def render(self, frozen: FrozenJob) -> Rendered:
        """The batch script, and sbatch with its options."""
        _check(frozen)
        return Rendered(
            files={SCRIPT: "\n".join(_script(frozen)) + "\n", **slurm_array.files(frozen)},
            command=["sbatch", *_options(frozen), str(frozen.folder / SCRIPT)],
        )

    def submit(self, folder: Path, command: list[str]) -> str:
        """Sends the job; Slurm's number for it."""
        return slurm_commands.submit(command)

    def state(self, folder: Path, job_id: str) -> JobState:
        """As the queue says, and once it is gone from there, as the script wrote down."""
        if slurm_array.is_array(folder):
            return slurm_array.state(folder, job_id)
        return slurm_commands.state(folder, job_id)

    def cancel(self, folder: Path, job_id: str) -> None:
        """Ends the job; its ranks are asked to save and have Slurm's KillWait to do so."""
        slurm_commands.cancel(job_id)

    def logs(self, folder: Path, job_id: str, lines: int) -> Iterator[str]:
        """The last lines of the script's log and of each rank's."""
        return log_lines(folder, lines)


def _options(frozen: FrozenJob) -> list[str]:
    launch, slurm = frozen.launch, frozen.launch.slurm
    ranks = launch.ranks_per_node
    tasks = 1 if slurm.launcher == "torchrun" else ranks
    options: dict[str, object] = {
        "job-name": launch.name,
        "nodes": launch.nodes,
        "ntasks-per-node": tasks,
        "cpus-per-task": launch.cpus_per_process * ranks // tasks,
        "time": _time(launch.time_limit_s),
        # A failed node or a preemption puts the job back, too, and --resume goes on.
        "requeue": None,
        "open-mode": "append",
        "output": frozen.folder / LOGS / _JOB_LOG,
        "chdir": frozen.working_dir,
    }
    if launch.saves:
        # Only to the script, which hands it on: a launcher in between would die of it.
        options["signal"] = f"B:USR1@{launch.signal_before_end_s}"
    if launch.accelerators_per_node:
        options["gpus-per-node"] = launch.accelerators_per_node
    if launch.memory_gb is not None:
        options["mem"] = f"{max(1, int(launch.memory_gb * 1e9 / 2**20))}M"
    for name in ("partition", "account", "qos", "constraint"):
        if (value := getattr(slurm, name)) is not None:
            options[name] = value
    options |= slurm_array.options(frozen)
    words = [
        f"--{name}" if value is None else f"--{name}={value}" for name, value in options.items()
    ]
    return ["--parsable", *words, *slurm.sbatch_options]


def _script(frozen: FrozenJob) -> list[str]:
    launch, slurm = frozen.launch, frozen.launch.slurm
    first = f"$({HOSTS} | head -n 1)"
    address = f'"{first}"' if slurm.master_addr is None else shlex.quote(slurm.master_addr)
    return [
        *opening(frozen, forward(slurm.launcher), slurm_array.own_places(frozen)),
        # What a site's own lines call often reads variables that are not set.
        *(["set +u", *slurm.setup, "set -u"] if slurm.setup else []),
        f"MASTER_ADDR={address}",
        f"MASTER_PORT={_PORT}",
        f"OMP_NUM_THREADS={launch.cpus_per_process}",
        "export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS",
        *packages_checked(frozen),
        *step(frozen),
        "step=$!",
        "wait_for_step",
        *_restart(launch.max_restarts, slurm_array.own_job(frozen)),
        'finish "$status"',
    ]


def _restart(most: int, job: str) -> list[str]:
    """Back into the queue, if the run saved its state, was not cancelled, and not for ever."""
    return [
        "restarts=${SLURM_RESTART_COUNT:-0}",
        f'if [ "$status" -eq {EXIT_INTERRUPTED} ] && [ ! -e "$job"/{CANCELLED} ]; then',
        f'  if [ "$restarts" -lt {most} ]; then',
        f'    echo "saved; back into the queue, restart $((restarts + 1)) of {most}"',
        "    # Slurm ends this script as it puts the job back.",
        "    trap '' TERM",
        f"    if scontrol requeue {job}; then exit {EXIT_INTERRUPTED}; fi",
        '    echo "error: Slurm does not put the job back; prefixworks launch resume does" >&2',
        "  else",
        f'    echo "saved, and not put back after {most} restarts; prefixworks launch resume does"',
        "  fi",
        "fi",
    ]


def _check(frozen: FrozenJob) -> None:
    launch = frozen.launch
    if launch.signal_before_end_s > 65_535:
        raise ConfigError(
            f"signal_before_end_s = {launch.signal_before_end_s}: Slurm takes 65535 at most"
        )
    for path, value in {
        "output_root": frozen.folder,
        "the working folder": frozen.working_dir,
    }.items():
        if set(str(value)) & set("%\\"):
            raise ConfigError(
                f"{path} = {str(value)!r}: must not hold '%' or a backslash, which Slurm reads as"
                " signs of its own in the names of logs"
            )
    check_step(launch)
    slurm_array.check(frozen)


def _time(seconds: int) -> str:
    """A limit as Slurm writes it: days-hours:minutes:seconds."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02}:{minutes:02}:{rest:02}"


BACKEND = SlurmBackend()
