"""A sweep as an array job of a real Slurm cluster: disturbed, and as good as undisturbed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from jobs.launch.command import main as launch
from jobs.launch.job_folder import submission
from jobs.launch.slurm import BACKEND
from pipeline.config_reader import read_yaml
from tests.support.held_run import HeldRun
from tests.support.slurm_cluster import SlurmCluster, open_cluster
from tests.support.training_run import run, write_recipe

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(420)]

_PATIENCE_S = 240


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SlurmCluster]:
    with open_cluster() as running:
        for name in [name for name in os.environ if name.startswith("SLURM_")]:
            monkeypatch.delenv(name)
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        yield running


def write_job(folder: Path, base: Path, data: Path, held: HeldRun) -> Path:
    recipe = write_recipe(
        folder / "train.yaml",
        base,
        data,
        data={"validation": [str(data)]},
        training={"validation_samples": 2},
        engine={"processes": 1, "backend": "torch", "zero_stage": 0},
    )
    sweep = {
        "name": "lr",
        "recipe": str(recipe),
        "space": {"optimizer.lr": [0.1, 0.01, 0.001]},
        "concurrency": 2,
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    job = {
        "name": "lr",
        "backend": "slurm",
        "recipe": str(folder / "sweep.yaml"),
        "cpus_per_process": 1,
        "time_limit_s": 1800,
        "output_root": str(folder / "launched"),
        "environment": {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(held.folder)},
        "slurm": {"partition": "low"},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder / "job.yaml"


def test_tasks_save_go_back_and_end_as_if_undisturbed(
    cluster: SlurmCluster,
    base: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    held = HeldRun(tmp_path / "held").until_asked_to_stop(3)
    job = write_job(tmp_path, base, data, held)
    assert launch(["sweep", f"--config={job}", "--submit"]) == 0
    (folder,) = (tmp_path / "launched").iterdir()
    sent = submission(folder)
    assert sent is not None
    held.wait()
    state = BACKEND.state(folder, sent.job_id)
    assert state.word == "running"
    # As each task gets it when its time limit comes near.
    cluster.signal_script(sent.job_id)
    until = time.monotonic() + _PATIENCE_S
    while (state := BACKEND.state(folder, sent.job_id)).active:
        said = "\n".join(BACKEND.logs(folder, sent.job_id, 60))
        assert time.monotonic() < until, f"{state}\n{said}"
        time.sleep(0.3)
    said = "\n".join(BACKEND.logs(folder, sent.job_id, 60))
    assert (state.word, state.exit_status) == ("finished", 0), f"{state}\n{said}"
    assert "trials: 3 finished" in state.detail
    restarts = [cluster.facts(f"{sent.job_id}_{task}")["Restarts"] for task in range(3)]
    # The held one, and what ran as the signals were sent; none of them twice.
    assert set(restarts) <= {"0", "1"}, said
    _check_as_alone(tmp_path / "runs" / "lr" / f"trial-00{restarts.index('1')}", tmp_path)

    capsys.readouterr()
    assert launch(["logs", str(folder), "--lines=5"]) == 0
    assert "trial-2.log" in capsys.readouterr().out


def _check_as_alone(trial: Path, folder: Path) -> None:
    settings = {**read_yaml(trial / "trial.yaml"), "output_dir": str(folder), "name": "alone"}
    (folder / "alone.yaml").write_text(yaml.safe_dump(settings))
    status, said = run(folder / "alone.yaml")
    assert status == 0, said
    ours, theirs = (
        load_file(run_dir / "best" / "trainable.safetensors")
        for run_dir in (trial, folder / "alone")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
