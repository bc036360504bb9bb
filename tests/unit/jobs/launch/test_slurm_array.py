"""Sweeps as array jobs, run where Slurm's commands only write down what they are told."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from jobs.launch.freeze import FrozenJob, freeze
from jobs.launch.slurm import BACKEND
from jobs.sweep.config import SweepConfig
from jobs.sweep.trials import plan
from pipeline.config_reader import load
from pipeline.errors import ConfigError, DataError
from tests.support.fake_slurm import FakeSlurm
from tests.support.launched_job import SHELLCHECK, launch_config, rendered
from tests.support.sweep import sweep_config

TASK = {"SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_ID": "2"}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "fake")
    for name in ("PATH", "FAKE"):
        monkeypatch.setenv(name, fake.environment()[name])
    return fake


def launched(folder: Path, sweep: dict[str, Any] | None = None, **job: Any) -> FrozenJob:
    sweep_config(folder, **(sweep or {}))
    recipe = str(folder / "sweep.yaml")
    frozen, _ = rendered(launch_config(folder, **{"stage": "sweep", "recipe": recipe, **job}))
    return frozen


def test_the_frozen_sweep_holds_its_training_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "train.yaml"
    recipe.write_text("name: ours\noptimizer: {lr: 0.5}\n")
    frozen = launched(tmp_path, {"recipe": str(recipe), "space": {"seed": [1, 2]}})
    recipe.write_text("name: theirs\noptimizer: {lr: 0.1}\n")
    sweep = plan(load(SweepConfig, [frozen.folder / "config.yaml"]))
    assert [trial.run.optimizer.lr for trial in sweep.trials] == [0.5, 0.5]
    assert sweep.trials[0].run.engine.threads_per_process == frozen.launch.cpus_per_process
    assert frozen.command("python")[1:] == [
        *("-m", "jobs.sweep", f"--config={frozen.folder / 'config.yaml'}", "--resume")
    ]


def test_a_task_trains_its_trial(tmp_path: Path, slurm: FakeSlurm) -> None:
    frozen = launched(tmp_path, {"concurrency": 2}, cpus_per_process=3, accelerators_per_node=1)
    command = BACKEND.render(frozen).command
    assert {"--array=0-2%2", "--cpus-per-task=3", "--gpus-per-node=1", "--requeue"} <= set(command)
    assert f"--output={frozen.folder}/logs/trial-%a.log" in command
    assert "--signal=B:USR1@300" in command
    done = slurm.run(frozen.folder / "job.sh", **TASK)
    assert done.returncode == 0, done.stderr
    words = slurm.words("srun")
    assert words[-5:] == [
        *("-m", "jobs.sweep", f"--config={frozen.folder / 'config.yaml'}", "--resume", "--trial=2")
    ]
    assert (frozen.folder / "tasks" / "2" / "exit_status").read_text() == "0\n"
    assert not (frozen.folder / "exit_status").exists()


def test_a_task_goes_back_into_the_queue_by_itself(tmp_path: Path, slurm: FakeSlurm) -> None:
    frozen = launched(tmp_path)
    assert slurm.run(frozen.folder / "job.sh", FAKE_STATUS="75", **TASK).returncode == 75
    # Not 4700 alone, which may be all of the array.
    assert slurm.requeued() == ["4700_2"]
    (frozen.folder / "cancelled").touch()
    assert slurm.run(frozen.folder / "job.sh", FAKE_STATUS="75", **TASK).returncode == 75
    assert slurm.requeued() == ["4700_2"]


def test_a_task_whose_trial_is_finished_is_not_run_again(tmp_path: Path, slurm: FakeSlurm) -> None:
    frozen = launched(tmp_path)
    trial = tmp_path / "runs" / "lr" / "trial-002"
    trial.mkdir(parents=True)
    (slurm.folder / "srun.body").write_text("kill -TERM $PPID\nwhile :; do sleep 0.01; done")
    assert slurm.run(frozen.folder / "job.sh", **TASK).returncode == 75
    (trial / "summary.json").touch()
    assert slurm.run(frozen.folder / "job.sh", **TASK).returncode == 0
    assert slurm.requeued() == ["4700_2"]


@pytest.mark.parametrize(
    ("queue", "ends", "word", "said"),
    [
        ("4700|0|RUNNING\n4700|1|PENDING\n4700|2|PENDING\n", {}, "running", "2 waiting, 1 running"),
        ("4700|1|PENDING\n9|0|RUNNING\n", {0: 0, 2: 1}, "waiting", "failed are 2"),
        ("", {0: 0, 1: 0, 2: 0}, "finished", "3 finished"),
        ("4700|1|COMPLETED\n", {0: 0, 1: 0, 2: 75}, "interrupted", "2 finished, 1 interrupted"),
        ("", {0: 0, 1: 1, 2: 137}, "failed", "failed are 1, 2"),
        ("", {0: 0, 1: 0}, "lost", "2 finished, 1 lost"),
    ],
)
def test_tasks_are_counted_by_how_they_stand(
    queue: str, ends: dict[int, int], word: str, said: str, tmp_path: Path, slurm: FakeSlurm
) -> None:
    frozen = launched(tmp_path)
    for task, status in ends.items():
        place = frozen.folder / "tasks" / str(task)
        place.mkdir(parents=True)
        (place / "exit_status").write_text(f"{status}\n")
    (slurm.folder / "queue").write_text(queue)
    state = BACKEND.state(frozen.folder, "4700")
    assert state.word == word
    assert said in state.detail
    if word in ("finished", "failed"):
        assert state.exit_status == (0 if word == "finished" else 1)


def test_a_cancelled_array_says_so(tmp_path: Path, slurm: FakeSlurm) -> None:
    frozen = launched(tmp_path)
    (frozen.folder / "cancelled").touch()
    assert BACKEND.state(frozen.folder, "4700").word == "cancelled"
    (frozen.folder / "array.json").write_text(json.dumps({"tasks": "many"}))
    with pytest.raises(DataError, match=r"array\.json cannot be read"):
        BACKEND.state(frozen.folder, "4700")


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing_in_the_script_of_an_array(tmp_path: Path) -> None:
    folder = tmp_path / "it's $(a) sweep"
    folder.mkdir()
    frozen = launched(folder, slurm={"setup": ["module load cuda"]})
    done = subprocess.run(
        # A `$` inside of a value is meant to stay what it is.
        [str(SHELLCHECK), "--exclude=SC2016", str(frozen.folder / "job.sh")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_hostile_names_reach_the_trial_and_nothing_else(tmp_path: Path, slurm: FakeSlurm) -> None:
    folder = tmp_path / "a b'c\"d`touch evil`$(touch evil)"
    folder.mkdir()
    name = 'x\'; touch evil; $(touch evil) "`touch evil`"'
    frozen = launched(folder, {"name": name})
    trial = folder / "runs" / name / "trial-002"
    trial.mkdir(parents=True)
    (trial / "summary.json").touch()
    (slurm.folder / "srun.body").write_text("kill -TERM $PPID\nwhile :; do sleep 0.01; done")
    before = set(Path.cwd().iterdir())
    assert slurm.run(frozen.folder / "job.sh", **TASK).returncode == 0
    assert set(Path.cwd().iterdir()) == before
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(
    ("sweep", "job", "said"),
    [
        (
            {
                "scheduler": "asha",
                "space": {"training.max_steps": [10, 20]},
                "metric": "validation/loss",
            },
            {"overrides": ["settings.training.validate_every_steps=5"]},
            "scheduler = asha: compares trials",
        ),
        ({}, {"slurm": {"launcher": "torchrun"}}, "slurm.launcher = torchrun"),
        ({}, {"nodes": 2}, "stage = sweep: runs as one process on one node"),
        ({"space": {"optimizer.lr": [-1.0]}}, {}, "lr must be above 0"),
    ],
)
def test_what_an_array_cannot_run_is_refused(
    sweep: dict[str, Any], job: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        launched(tmp_path, sweep, **job)
    assert said in str(refused.value)
    assert not (tmp_path / "launched").exists()


def test_a_local_sweep_is_one_job(tmp_path: Path) -> None:
    sweep_config(tmp_path)
    recipe = str(tmp_path / "sweep.yaml")
    frozen = freeze(launch_config(tmp_path, stage="sweep", recipe=recipe, backend="local"))
    assert frozen.command("python")[1:3] == ["-m", "jobs.sweep"]
