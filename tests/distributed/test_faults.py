"""Ranks that die, hang or are asked to stop: what the log says first, and that all of them end."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from pipeline.config import RunConfig, load
from pipeline.training import trainer
from tests.support.fault import Fault, processes_about
from tests.support.training_run import (
    finish,
    run_dir_of,
    start,
    wait_for_step,
    write_recipe,
)

pytestmark = pytest.mark.distributed

ENDED_WITHIN_S = 40.0
"""Of a fault. The launcher alone gives a rank 30 seconds before it kills it."""
PATIENCE_S = 240.0
HANGS_AFTER_S = 8
ONE = {"processes": 1}


def errors_of(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("error: ")]


def fails(recipe: Path, fault: Fault) -> str:
    """Runs until the fault ends it; what it said. Nothing may stay behind."""
    status, said = finish(start(recipe, python_path=fault.folder), PATIENCE_S)
    assert fault.happened, said[:2000]
    assert status == 1, said
    assert fault.seconds_ago() < ENDED_WITHIN_S
    assert not processes_about(recipe)
    return said


def test_a_rank_that_is_killed_is_named_first(base: Path, data: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "run.yaml", base, data)
    kill = Fault(tmp_path / "f", "os.kill(os.getpid(), 9)", rank=1, when="args[1] == 2")
    said = fails(recipe, kill)
    first, *_, last = errors_of(said)
    assert "rank 0 lost contact with another rank" in first
    assert "rank 1 (process " in first
    assert "was killed by SIGKILL" in first or "is gone" in first
    assert "--resume continues" in last
    assert "Traceback" not in said


def test_a_defect_in_a_rank_is_the_first_thing_in_the_log(
    base: Path, data: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "run.yaml", base, data)
    defect = Fault(tmp_path / "f", "raise ValueError('a defect')", rank=1, when="args[1] == 2")
    said = fails(recipe, defect)
    assert said.index("ValueError: a defect") < said.index("error: rank 0 lost contact")
    assert said.count("Traceback") == 1


def test_a_rank_that_leaves_without_an_error_is_one(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path / "run.yaml", base, data, engine=ONE)

    def leave(*_: object) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(trainer, "seed_step", leave)
    with pytest.raises(RuntimeError, match=r"rank 0: sys.exit\(0\) in the middle of the run"):
        trainer.train(load(RunConfig, [recipe]))


def test_a_stopped_rank_ends_the_run_with_the_stacks_of_both(
    base: Path, data: Path, tmp_path: Path
) -> None:
    settings = {"step_timeout_s": HANGS_AFTER_S, "max_steps": 12}
    recipe = write_recipe(tmp_path / "run.yaml", base, data, training=settings)
    stop = "os.kill(os.getpid(), signal.SIGSTOP)"
    said = fails(recipe, Fault(tmp_path / "f", stop, rank=1, when="args[1] == 2"))
    first = errors_of(said)[0]
    assert f"rank 0 made no progress for {HANGS_AFTER_S} s after step 2" in first
    assert "rank 1 (process " in first
    assert "is stopped" in first
    for rank in (0, 1):
        assert f"rank {rank}, after step 2, is " in said
        stacks = (run_dir_of(recipe) / f"stacks-rank-{rank}.txt").read_text()
        assert "most recent call first" in stacks
        assert "in train_step" in stacks or "in faulty" in stacks


def test_a_read_that_hangs_ends_the_run_with_its_stack(
    base: Path, data: Path, tmp_path: Path
) -> None:
    settings = {"step_timeout_s": HANGS_AFTER_S}
    recipe = write_recipe(tmp_path / "run.yaml", base, data, training=settings, engine=ONE)
    os.mkfifo(tmp_path / "network-folder")
    fault = Fault(
        tmp_path / "f",
        f"open({str(tmp_path / 'network-folder')!r})",
        rank=None,
        before="pipeline.training.assembly:Assembler.__call__",
        when="args[1][0].place >= 6",
    )
    said = fails(recipe, fault)
    assert "it is waiting for data" in errors_of(said)[0]
    stacks = (run_dir_of(recipe) / "stacks-rank-0.txt").read_text()
    assert "in faulty" in stacks  # the loader's thread
    assert "in _batches" in stacks  # the main thread


def test_two_signals_to_one_rank_while_it_validates_stop_both_at_the_same_step(
    base: Path, data: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(
        tmp_path / "run.yaml",
        base,
        data,
        data={"validation": [str(data)]},
        training={"validation_samples": 3, "validate_every_steps": 2, "save_every_steps": None},
    )
    fault = Fault(
        tmp_path / "f",
        "os.kill(os.getpid(), signal.SIGUSR1)\nos.kill(os.getpid(), signal.SIGTERM)",
        rank=1,
        before="pipeline.training.validation:Validator.measure",
    )
    status, said = finish(start(recipe, python_path=fault.folder), PATIENCE_S)
    assert status == 75, said
    assert "step 2 of 6 is saved" in said
    assert "step 2: validation/loss" in said
    folder = run_dir_of(recipe)
    assert (folder / "interrupted").read_text() == "2\n"
    assert (folder / "checkpoints" / "latest").read_text() == "step-000002\n"


def test_a_signal_while_saving_stops_after_it_and_one_after_the_last_step_comes_too_late(
    base: Path, data: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "run.yaml", base, data, engine=ONE)
    ask = "os.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.2)"
    saving = Fault(
        tmp_path / "saving",
        ask,
        rank=None,
        before="pipeline.training.trainer:CheckpointFolder.save",
    )
    status, said = finish(start(recipe, python_path=saving.folder), PATIENCE_S)
    assert status == 75, said
    assert "step 2 of 6 is saved" in said
    late = Fault(
        tmp_path / "late", ask, rank=None, before="pipeline.training.trainer:write_summary"
    )
    status, said = finish(start(recipe, "--resume", python_path=late.folder), PATIENCE_S)
    assert status == 0, said
    assert json.loads((run_dir_of(recipe) / "summary.json").read_text())["final_step"] == 6


@pytest.mark.parametrize("early", [True, False])
def test_a_signal_before_the_first_step_ends_all_at_once(
    early: bool, base: Path, data: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "run.yaml", base, data)
    os.mkfifo(tmp_path / "network-folder")
    fault = Fault(
        tmp_path / "f",
        f"open({str(tmp_path / 'network-folder')!r})",
        rank=1,
        before="pipeline.training.trainer:build_model",
    )
    process = start(recipe, python_path=fault.folder)
    if early:
        time.sleep(0.5)  # some of Python's imports are still to come
    else:
        fault.wait()
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    status, said = finish(process, PATIENCE_S)
    assert status == (-signal.SIGTERM if early and status < 0 else 75), said
    assert time.monotonic() - began < ENDED_WITHIN_S
    assert not processes_about(recipe)
    assert not (run_dir_of(recipe) / "checkpoints").exists()


def test_a_run_that_is_killed_as_a_whole_leaves_no_shared_memory(
    base: Path, data: Path, tmp_path: Path
) -> None:
    before = set(Path("/dev/shm").iterdir())
    recipe = write_recipe(
        tmp_path / "run.yaml",
        base,
        data,
        data={"loader": "processes", "loader_workers": 2},
        training={"max_steps": 100_000, "save_every_steps": None, "log_every_steps": 10},
    )
    process = start(recipe)
    wait_for_step(run_dir_of(recipe), 10, process)
    whole = [process, *psutil.Process(process.pid).children(recursive=True)]
    assert len(whole) > 6  # two ranks with two workers each
    for each in whole:
        each.kill()
    process.communicate()
    assert not processes_about(recipe)
    ours = [p for p in Path("/dev/shm").iterdir() if "PostgreSQL" not in p.name]
    assert before.issuperset(ours)
