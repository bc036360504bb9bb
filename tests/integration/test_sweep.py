"""Sweeps with real Ray Tune: what is killed goes on, and a trial ends as a run alone does."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from pipeline.config_reader import read_yaml
from pipeline.tracking.config import TrackingConfig
from pipeline.tracking.sweep_record import SweepRecord
from pipeline.tracking.sweeps import SWEEP_TAG
from tests.support.mlflow_store import make_store
from tests.support.small_world import prepared_world
from tests.support.sweep import start_sweep, states_of
from tests.support.training_run import finish, run, small_base, wait_for_step, write_recipe

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

_PATIENCE_S = 300


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, which begins soonest, on a base that is made once."""
    folder = tmp_path_factory.mktemp("sweeps")
    data = prepared_world(folder / "world", scenes=4)
    base = small_base(folder / "base", data)
    return write_recipe(
        folder / "train.yaml",
        base,
        data,
        data={"validation": [str(data)]},
        training={"max_steps": 24, "validate_every_steps": 4, "validation_samples": 2},
        engine={"processes": 1, "backend": "torch", "zero_stage": 0},
    )


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Commands that a test has started; none of them outlives it."""
    commands: list[subprocess.Popen[str]] = []
    yield commands
    for command in commands:
        if command.poll() is None:
            kill(command)


def write_sweep(folder: Path, recipe: Path, **settings: Any) -> Path:
    path = folder / "sweep.yaml"
    output = {"output_dir": str(folder / "runs"), **settings.pop("settings", {})}
    path.write_text(
        yaml.safe_dump({"name": "lr", "recipe": str(recipe), "settings": output, **settings})
    )
    return path


def kill(command: subprocess.Popen[str]) -> None:
    """As a power cut would: all that it has started, and nobody asked."""
    everything = [
        psutil.Process(command.pid),
        *psutil.Process(command.pid).children(recursive=True),
    ]
    for process in everything:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    command.communicate()


def assert_as_alone(trial: Path, folder: Path) -> None:
    """Checks that a trial has trained the bits of a run of its settings that nobody disturbed."""
    settings = {**read_yaml(trial / "trial.yaml"), "output_dir": str(folder), "name": "alone"}
    settings["tracking"]["enabled"] = False
    (folder / "alone.yaml").write_text(yaml.safe_dump(settings))
    status, said = run(folder / "alone.yaml")
    assert status == 0, said
    ours, theirs = (
        load_file(run_dir / "best" / "trainable.safetensors")
        for run_dir in (trial, folder / "alone")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_killed_sweep_goes_on_and_repeats_nothing(
    recipe: Path, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    make_store(tmp_path / "runs")
    config = write_sweep(
        tmp_path,
        recipe,
        # A poor one that has nobody to be behind, a good one, and the poorest.
        space={"optimizer.lr": [0.001, 0.1, 0.0001]},
        scheduler="asha",
        asha={"grace_steps": 4, "reduction_factor": 2},
        settings={"tracking": {"enabled": True, "system_metrics_s": 0, "pictures": 0}},
    )
    folder = tmp_path / "runs" / "lr"
    started.append(start_sweep(config))
    wait_for_step(folder / "trial-001", 8, started[0])
    kill(started[0])
    assert (folder / "trial-000" / "summary.json").exists()
    assert not (folder / "sweep.json").exists()
    before = (folder / "trial-000" / "train.log").read_text()

    started.append(start_sweep(config, "--resume"))
    status, said = finish(started[1], _PATIENCE_S)
    assert status == 0, said
    assert "1 of 3 trials are over already" in said
    assert states_of(folder) == {
        "trial-001": "finished",
        "trial-000": "finished",
        "trial-002": "stopped",
    }
    assert (folder / "trial-000" / "train.log").read_text() == before
    # A stopped trial can be continued as any run that was asked to stop.
    assert (folder / "trial-002" / "checkpoints" / "latest").is_file()
    assert not (folder / "trial-002" / "summary.json").exists()
    assert_as_alone(folder / "trial-001", tmp_path)
    _check_record(folder)


def _check_record(folder: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{folder.parent}/mlflow.db")
    [experiment] = [each for each in client.search_experiments() if each.name != "Default"]
    everything = client.search_runs([experiment.experiment_id])
    [parent] = [each for each in everything if SWEEP_TAG in each.data.tags]
    children = [
        each
        for each in everything
        if each.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    ]
    assert len(children) == len(everything) - 1 == 3
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["sweep.best_trial"] == "trial-001"
    assert parent.data.params["space.optimizer.lr"] == "[0.001, 0.1, 0.0001]"
    assert parent.data.metrics["trials/stopped"] == 1
    files = {each.path for each in client.list_artifacts(parent.info.run_id)}
    assert files == {"sweep.json", "sweep.yaml"}


def test_a_sweep_that_is_asked_to_stop_saves_and_any_node_can_go_on(
    recipe: Path, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    stray = [{"match": "no.such.parameter", "lr_scale": 2.0}]
    config = write_sweep(tmp_path, recipe, space={"optimizer.groups": [[], stray]})
    folder = tmp_path / "runs" / "lr"
    started.append(start_sweep(config))
    wait_for_step(folder / "trial-000", 6, started[0])
    started[0].send_signal(signal.SIGTERM)
    status, said = finish(started[0], _PATIENCE_S)
    assert status == 75, said
    assert "--resume goes on" in said
    assert states_of(folder) == {"trial-000": "interrupted", "trial-001": "waiting"}

    # As a task of an array job does, without Ray; it is asked to stop once more.
    saved = json.loads((folder / "trial-000" / "metrics.jsonl").read_text().splitlines()[-1])
    started.append(start_sweep(config, "--resume", "--trial=0"))
    wait_for_step(folder / "trial-000", saved["step"] + 1, started[1])
    started[1].send_signal(signal.SIGUSR1)
    status, said = finish(started[1], _PATIENCE_S)
    assert status == 75, said

    started.append(start_sweep(config, "--resume"))
    status, said = finish(started[2], _PATIENCE_S)
    assert_as_alone(folder / "trial-000", tmp_path)
    assert status == 1, said
    assert "1 of 2 trials did not finish; the first of them, trial-001: " in said
    assert "no.such.parameter" in said
    failure = json.loads((folder / "trial-001" / "failure.json").read_text())
    assert failure["exit_status"] == 2
    assert states_of(folder) == {"trial-000": "finished", "trial-001": "failed"}


def test_processes_that_start_at_once_make_one_parent(tmp_path: Path) -> None:
    make_store(tmp_path)
    tracking = TrackingConfig()

    def begin() -> None:
        record = SweepRecord(tmp_path / "sweep", "it's one", "shared", tracking, str(tmp_path))
        record.begin({"space.seed": "[1, 2]"}, "a sweep")

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("shared")
    assert experiment is not None
    [parent] = client.search_runs([experiment.experiment_id])
    assert parent.info.run_name == "it's one"
    assert parent.data.params == {"space.seed": "[1, 2]"}


def test_a_store_that_is_down_stops_no_sweep(tmp_path: Path) -> None:
    tracking = TrackingConfig(uri="http://127.0.0.1:9", request_timeout_s=1, close_timeout_s=0)
    record = SweepRecord(tmp_path / "sweep", "lr", "shared", tracking, str(tmp_path))
    record.begin({"space.seed": "[1]"}, "a sweep")
    record.end("FINISHED")
    journal = (tmp_path / "sweep" / "tracking").glob("*")
    assert any("space.seed" in each.read_text() for each in journal if each.is_file())
