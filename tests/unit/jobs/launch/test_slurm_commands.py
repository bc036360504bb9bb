"""Submitting to Slurm, asking it and cancelling, where its commands are programs that answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.cli import run_stage
from jobs.launch.command import main
from tests.support.fake_slurm import FakeSlurm, write_program
from tests.support.launched_job import recipe


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "fake")
    for name, value in fake.environment().items():
        monkeypatch.setenv(name, value)
    recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    return fake


def submitted(*words: str) -> Path:
    job = ["train", "--on=slurm", "--name=job", "--recipe=recipe.yaml", "--submit", *words]
    assert run_stage(main, job) == 0
    [folder] = Path("launched").glob("job-*")
    return folder


def test_sbatch_gets_what_the_job_needs(slurm: FakeSlurm) -> None:
    folder = submitted(
        "--nodes=2",
        "--accelerators_per_node=4",
        "--cpus_per_process=6",
        "--memory_gb=64",
        "--time_limit_s=90061",
        "--signal_before_end_s=120",
        "--slurm.partition=gpu",
        "--slurm.sbatch_options=[--exclusive]",
    )
    words = slurm.words("sbatch")
    assert words[-1] == str(folder.absolute() / "job.sh")
    assert set(words) >= {
        "--parsable",
        "--job-name=job",
        "--nodes=2",
        "--ntasks-per-node=4",
        "--gpus-per-node=4",
        "--cpus-per-task=6",
        "--mem=61035M",
        "--time=1-01:01:01",
        "--signal=B:USR1@120",
        "--requeue",
        "--open-mode=append",
        "--partition=gpu",
        "--exclusive",
    }
    sent = json.loads((folder / "submission.json").read_text())
    assert sent == {"backend": "slurm", "job_id": "4711", "command": ["sbatch", *words]}


def test_only_training_is_warned_of_its_end(slurm: FakeSlurm, tmp_path: Path) -> None:
    (tmp_path / "evaluate.yaml").write_text("dataset: data\n")
    job = ["--on=slurm", "--name=score", "--recipe=evaluate.yaml", "--accelerators_per_node=2"]
    assert run_stage(main, ["evaluate", *job, "--submit"]) == 0
    words = slurm.words("sbatch")
    assert not [word for word in words if word.startswith("--signal")]
    assert "--ntasks-per-node=1" in words


@pytest.mark.parametrize(
    ("queue", "status", "said"),
    [
        ("4711|RUNNING|None\n", None, "running, Slurm job 4711: RUNNING"),
        ("4710|RUNNING|None\n4711|PENDING|Priority\n", None, "waiting, Slurm job 4711: PENDING (P"),
        ("4711|COMPLETING|None\n", None, "running"),
        ("4711|COMPLETED|None\n", "0", "finished"),
        ("4711|FAILED|NonZeroExitCode\n", "1", "failed, exit status 1"),
        ("4711|TIMEOUT|TimeLimit\n", None, "lost, Slurm job 4711: TIMEOUT (TimeLimit)"),
        ("4710|RUNNING|None\n", "75", "interrupted, its state is saved"),
        ("", None, "lost, Slurm job 4711 is gone; sacct -j 4711 may know why"),
    ],
)
def test_the_queue_knows_before_the_folder(
    queue: str,
    status: str | None,
    said: str,
    slurm: FakeSlurm,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = submitted()
    (slurm.folder / "queue").write_text(queue)
    if status is not None:
        (folder / "exit_status").write_text(status)
    capsys.readouterr()
    assert run_stage(main, ["status", folder.name]) == 0
    assert f"{folder.name}: {said}" in capsys.readouterr().out


def test_cancelling_marks_the_job_before_slurm_ends_it(
    slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = submitted()
    mark = folder.absolute() / "cancelled"
    write_program(
        slurm.programs / "scancel", f'#!/bin/bash\ntest -e {mark} && echo "$@" >"$FAKE/cancelled"\n'
    )
    (slurm.folder / "queue").write_text("4711|RUNNING|None\n")
    assert run_stage(main, ["cancel", folder.name]) == 0
    assert (slurm.folder / "cancelled").read_text() == "4711\n"
    (slurm.folder / "queue").unlink()
    assert run_stage(main, ["cancel", folder.name]) == 0
    assert "there is nothing to cancel" in capsys.readouterr().out
    assert run_stage(main, ["resume", folder.name]) == 0
    assert not mark.exists()
    assert slurm.words("sbatch")[-1] == str(folder.absolute() / "job.sh")


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("echo 'Invalid partition' >&2; exit 1", "sbatch failed: Invalid partition"),
        ("echo hello", "sbatch answered 'hello', which is no number of a job"),
    ],
)
def test_what_sbatch_refuses_can_be_sent_again(
    program: str, said: str, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    working = (slurm.programs / "sbatch").read_text()
    write_program(slurm.programs / "sbatch", f"#!/bin/bash\n{program}\n")
    job = ["train", "--on=slurm", "--name=job", "--recipe=recipe.yaml", "--submit"]
    assert run_stage(main, job) == 1
    assert said in capsys.readouterr().err
    write_program(slurm.programs / "sbatch", working)
    assert (submitted() / "submission.json").is_file()


def test_a_machine_without_slurm_is_told(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(slurm.folder))
    job = ["train", "--on=slurm", "--name=job", "--recipe=recipe.yaml", "--submit"]
    assert run_stage(main, job) == 1
    assert "sbatch is not on PATH" in capsys.readouterr().err
