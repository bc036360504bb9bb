"""Sweeps on Slurm: array jobs, whose task k trains trial k.

Tasks know nothing of each other: each has its own log, its own exit status, and its own way back
into the queue.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import yaml

from jobs.launch.backend import JobState
from jobs.launch.freeze import CONFIG, LOGS, FrozenJob
from jobs.launch.job_folder import CANCELLED, recorded_end
from jobs.launch.slurm_commands import in_queue, run
from pipeline.config_tree import build
from pipeline.errors import ConfigError, DataError

ARRAY = "array.json"
"""Present in the folder of an array job: how many tasks it has."""
TRIAL = '--trial="$SLURM_ARRAY_TASK_ID"'
"""The word that tells a task its trial; Slurm puts a number there."""
TASKS = "tasks"
_MOST_NAMED = 10


def files(frozen: FrozenJob) -> dict[str, str]:
    """What is written beside the script; nothing but for a sweep."""
    if frozen.launch.stage != "sweep":
        return {}
    return {ARRAY: json.dumps({"tasks": _trials(frozen)[0]}) + "\n"}


def is_array(folder: Path) -> bool:
    """Whether a job is an array."""
    return (folder / ARRAY).is_file()


def options(frozen: FrozenJob) -> Mapping[str, object]:
    """Options of sbatch, over those of a single job."""
    if frozen.launch.stage != "sweep":
        return {}
    tasks, cpus, concurrency = _trials(frozen)
    return {
        "array": f"0-{tasks - 1}%{concurrency}",
        "cpus-per-task": cpus,
        "output": frozen.folder / LOGS / "trial-%a.log",
    }


def own_places(frozen: FrozenJob) -> list[str]:
    """Shell that gives a task its own exit status, and tells where its trial's last file is."""
    if frozen.launch.stage != "sweep":
        return []
    from pipeline.training.summary import SUMMARY_FILE

    sweep = yaml.safe_load(frozen.files[CONFIG])
    trials = frozen.working_dir / sweep["settings"]["output_dir"] / sweep["name"]
    return [
        f'ends="$job"/{TASKS}/"$SLURM_ARRAY_TASK_ID"',
        'mkdir -p -- "$ends" || exit 1',
        f"finished={shlex.quote(str(trials))}/$(printf 'trial-%03d' \"$SLURM_ARRAY_TASK_ID\")"
        f"/{SUMMARY_FILE}",
    ]


def own_job(frozen: FrozenJob) -> str:
    """How a job names itself to scontrol; the number of an array's job may mean all its tasks."""
    if frozen.launch.stage != "sweep":
        return '"$SLURM_JOB_ID"'
    return '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"'


def check(frozen: FrozenJob) -> None:
    """Refuses a sweep that an array cannot run.

    Raises:
        ConfigError: its trials have to see each other, or another launcher is asked for.
    """
    launch = frozen.launch
    if launch.stage != "sweep":
        return
    if yaml.safe_load(frozen.files[CONFIG])["scheduler"] != "none":
        raise ConfigError(
            "scheduler = asha: compares trials while they run, and the tasks of an array job do not"
            " see each other; take scheduler = none, or backend = ray"
        )
    if launch.slurm.launcher != "srun":
        raise ConfigError(
            f"slurm.launcher = {launch.slurm.launcher}: each trial of a sweep starts its own ranks;"
            " take srun"
        )


def state(folder: Path, job_id: str) -> JobState:
    """How the tasks of an array stand, together.

    Raises:
        DataError: Slurm does not answer, or the job's folder is damaged.
    """
    try:
        tasks = int(json.loads((folder / ARRAY).read_text(encoding="utf-8"))["tasks"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / ARRAY} cannot be read: {error}") from error
    queue = _queue(job_id)
    found = [queue.get(task) or _ended(folder, task) for task in range(tasks)]
    counts = Counter(each.word for each in found)
    said = ", ".join(f"{count} {word}" for word, count in counts.most_common())
    detail = f"Slurm job {job_id}, trials: {said}"
    failed = [str(task) for task, each in enumerate(found) if each.word == "failed"]
    if failed:
        more = "" if len(failed) <= _MOST_NAMED else ", ..."
        detail += f"; failed are {', '.join(failed[:_MOST_NAMED])}{more}"
    for word in ("running", "waiting", "failed", "lost", "cancelled", "interrupted", "finished"):
        if word in counts:
            status = next(each.exit_status for each in found if each.word == word)
            return JobState(word=word, detail=detail, exit_status=status)
    raise DataError(f"{folder / ARRAY}: an array has a task at least")


def _queue(job_id: str) -> dict[int, JobState]:
    """Tasks that wait or run, by their number."""
    asked = ["squeue", "--noheader", "--me", "--array", "--states=all", "--format=%F|%K|%T"]
    found: dict[int, JobState] = {}
    for line in run(asked).splitlines():
        array, task, word = [*line.strip().split("|"), "", ""][:3]
        present = in_queue(word)
        if array == job_id and task.isdigit() and present is not None:
            found[int(task)] = JobState(word=present)
    return found


def _ended(folder: Path, task: int) -> JobState:
    ended = recorded_end(folder / TASKS / str(task), "its script wrote no end down")
    if (folder / CANCELLED).exists() and ended.word != "finished":
        return JobState(word="cancelled", exit_status=ended.exit_status)
    return ended


def _trials(frozen: FrozenJob) -> tuple[int, int, int]:
    """How many trials a sweep has, the cores of each, and how many may run at once."""
    # Here, because it brings torch with it, which takes seconds to import.
    from jobs.sweep.config import SweepConfig
    from jobs.sweep.trials import plan

    sweep = plan(build(SweepConfig, yaml.safe_load(frozen.files[CONFIG])))
    return (
        len(sweep.trials),
        max(trial.cpus for trial in sweep.trials),
        sweep.config.concurrency,
    )
