"""Runs in a real MLflow store: what is recorded, and how a run continues."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import EXIT_INTERRUPTED, RegistryError, TrainingError
from pipeline.tracking.config import StoreLocation
from pipeline.tracking.delivery import open_client
from pipeline.tracking.journal import Journal
from pipeline.tracking.mlflow import MlflowHook, record_evaluation
from pipeline.tracking.nodes import node_metrics, node_name
from pipeline.tracking.recording import recording
from pipeline.tracking.sync import look_at, sync_run
from tests.support.mlflow_store import make_store
from tests.support.tracked_run import (
    begin,
    client_and_run,
    finish,
    keep_checkpoint,
    log_steps,
    record_run,
    run_config,
    run_dir_of,
    steps_of,
    validate,
)

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_store_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_run_is_recorded_whole(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    run_dir = run_dir_of(config)
    hooks = begin(config)
    log_steps(hooks, range(20))
    predictions = run_dir / "pictures" / "predictions"
    predictions.mkdir(parents=True)
    (predictions / "step-000019.png").write_bytes(b"boxes")
    validate(hooks, 19)
    finish(hooks[0], config, 19)

    client, run_id = client_and_run(run_dir)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "shapes (prefix 64, lr 0.001, seed 0)"
    assert client.get_experiment(run.info.experiment_id).name == "grounding, vqa on ofa-micro"
    assert run.data.params["optimizer.lr"] == "0.001"
    assert json.loads(run.data.params["data.train"]) == [str(tmp_path / "train")]
    assert steps_of(client, run_id) == list(range(20))
    assert run.data.metrics["vqa/accuracy"] == run.data.metrics["best/vqa/accuracy"] == 0.5
    tags = run.data.tags
    assert tags["base.fingerprint.after"] == "sha256:aa"
    assert {"library.torch", "hardware.cpu", "hardware.gpus", "git.dirty"} <= tags.keys()
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert "Trains **prefix 64**" in tags["mlflow.note.content"]
    inputs = {i.tags[0].value: i.dataset for i in run.inputs.dataset_inputs}
    assert {context: data.name for context, data in inputs.items()} == {
        "train": "train",
        "validation": "held_out",
    }
    profile = json.loads(inputs["train"].profile)
    assert profile["digest"].removeprefix("sha256:").startswith(inputs["train"].digest)
    assert profile["counts"] == {"in": 8, "out": 7, "quarantined": 1}
    assert str(tmp_path / "train") in inputs["train"].source
    files = {f.path for f in client.list_artifacts(run_id)}
    assert files == {"config.yaml", "environment.json", "pictures"}
    environment = json.loads(
        Path(client.download_artifacts(run_id, "environment.json", str(tmp_path))).read_text()
    )
    assert {"torch", "mlflow"} <= environment["packages"].keys()
    pictures = {f.path for f in client.list_artifacts(run_id, "pictures")}
    assert pictures == {"pictures/curves.png", "pictures/predictions"}
    curves = client.download_artifacts(run_id, "pictures/curves.png", str(tmp_path))
    assert Image.open(curves).size[0] > 1000
    assert not (run_dir / "tracking" / "files").exists()


def test_a_checkpoint_is_a_logged_model_as_long_as_it_is_kept(tmp_path: Path) -> None:
    config = run_config(tmp_path, "shapes.1")
    run_dir = run_dir_of(config)
    hooks = begin(config)
    log_steps(hooks, range(1, 5))
    keep_checkpoint(run_dir, 4)
    validate(hooks, 4)
    keep_checkpoint(run_dir, 4, best=True)
    log_steps(hooks, range(5, 9))
    keep_checkpoint(run_dir, 8).joinpath("state.json").touch()
    (run_dir / "checkpoints" / "step-000004" / "state.json").unlink()
    (run_dir / "checkpoints" / "step-000004").rmdir()
    finish(hooks[0], config, 8)

    client, run_id = client_and_run(run_dir)
    run = client.get_run(run_id)
    models = client.search_logged_models([run.info.experiment_id])
    by_name = {model.name: model for model in models}
    assert set(by_name) == {"shapes_1-best-000004", "shapes_1-step-000008"}
    best = by_name["shapes_1-best-000004"]
    assert best.status == "READY"
    assert best.source_run_id == run_id
    assert best.model_type == "prefix"
    assert best.params["step"] == "4"
    assert best.params["folder"] == str(run_dir / "best")
    told = {metric.key: (metric.value, metric.dataset_name) for metric in best.metrics}
    assert told["vqa/accuracy"] == (0.5, "held_out")
    assert told["train/loss"] == (0.2, "train")
    assert {output.model_id for output in run.outputs.model_outputs} >= {best.model_id}
    # The models' metrics are points of the run's own history, not new ones.
    assert steps_of(client, run_id) == list(range(1, 9))
    assert steps_of(client, run_id, "vqa/accuracy") == [4]

    journal = Journal(run_dir)
    (run_dir / "tracking" / "delivered.json").unlink()
    assert sync_run(run_dir) == len(list(journal.entries()))
    again = client.search_logged_models([run.info.experiment_id])
    assert {model.model_id for model in again} == {model.model_id for model in models}
    assert len(client.get_run(run_id).outputs.model_outputs) == len(run.outputs.model_outputs)


def test_a_resumed_run_continues_its_mlflow_run_and_doubles_nothing(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    hooks = begin(config)
    log_steps(hooks, range(1, 8))
    validate(hooks, 6)
    hooks[0].abandon()
    run_dir = run_dir_of(config)
    sync_run(run_dir)
    client, run_id = client_and_run(run_dir)
    assert client.get_run(run_id).info.status == "KILLED"
    # The newest checkpoint was that of step 4: what follows is trained again.
    hooks = begin(config, resumed_step=4)
    log_steps(hooks, range(5, 11))
    validate(hooks, 6)
    finish(hooks[0], config, 10)
    assert client_and_run(run_dir)[1] == run_id
    assert client.get_run(run_id).info.status == "FINISHED"
    assert steps_of(client, run_id) == list(range(1, 11))
    assert steps_of(client, run_id, "vqa/accuracy") == [6]
    # A finished run that is started again has nothing new to tell.
    finish(begin(config, resumed_step=10)[0], config, 10)
    assert steps_of(client, run_id, "run/seconds") == [10]
    experiment = client.get_run(run_id).info.experiment_id
    assert len(client.search_runs([experiment])) == 1


def test_steps_that_turn_out_otherwise_are_told_again(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    hooks = begin(config)
    log_steps(hooks, range(1, 4))
    hooks[0].abandon()
    hook = begin(config, resumed_step=2)[0]
    hook.on_log(3, {"train/loss": 0.1})
    finish(hook, config, 3)
    client, run_id = client_and_run(run_dir_of(config))
    assert steps_of(client, run_id) == [1, 2, 3, 3]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TrainingError("asked to stop", exit_code=EXIT_INTERRUPTED), "KILLED"),
        (TrainingError("rank 1 lost contact"), "FAILED"),
    ],
)
def test_a_run_that_breaks_says_why(tmp_path: Path, error: TrainingError, status: str) -> None:
    config = run_config(tmp_path)

    def train() -> None:
        with recording(config) as hooks:
            run_dir_of(config).mkdir(parents=True)
            hooks[0].on_start(run_dir_of(config), config)
            raise error

    with pytest.raises(TrainingError):
        train()
    sync_run(run_dir_of(config))  # a busy machine may not have delivered in time
    client, run_id = client_and_run(run_dir_of(config))
    run = client.get_run(run_id)
    assert run.info.status == status
    assert run.data.tags["run.ended_by"] == str(error)


def test_a_run_that_was_deleted_in_the_ui_refuses_nothing_and_can_come_back(
    tmp_path: Path,
) -> None:
    config = run_config(tmp_path)
    run_dir = record_run(config, range(1, 3))
    client, run_id = client_and_run(run_dir)
    client.delete_run(run_id)
    assert not record_evaluation(run_dir, {"vqa/accuracy": 0.9}, step=2)
    waiting = look_at(run_dir).waiting
    assert waiting == 1
    with pytest.raises(RegistryError, match=f"mlflow runs restore --run-id {run_id}"):
        sync_run(run_dir)
    assert (look_at(run_dir).waiting, look_at(run_dir).refused) == (waiting, 0)
    client.restore_run(run_id)
    assert sync_run(run_dir) == waiting
    assert client.get_run(run_id).data.metrics["evaluation/vqa/accuracy"] == 0.9


def test_a_process_that_is_killed_is_found_out_by_sync(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from pipeline.tracking.journal import Journal\n"
        "from tests.support.tracked_run import *\n"
        "config = run_config(Path(sys.argv[1]))\n"
        "log_steps(begin(config), range(3))\n"
        "journal = Journal(run_dir_of(config))\n"
        "def told(): return sum(e['kind'] == 'metrics' for e in journal.entries())\n"
        "while told() < 3: time.sleep(0.01)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, check=False, timeout=100, cwd=ROOT)
    run_dir = run_dir_of(config)
    assert look_at(run_dir).status == "died"
    assert sync_run(run_dir) >= 1
    client, run_id = client_and_run(run_dir)
    assert client.get_run(run_id).info.status == "KILLED"
    assert look_at(run_dir).status == "killed"
    assert steps_of(client, run_id) == [0, 1, 2]


def test_runs_of_a_sweep_have_one_parent(tmp_path: Path) -> None:
    children = []
    for name in ("first", "second"):
        config = run_config(tmp_path, name, parent_run="it's a sweep")
        children.append(record_run(config, range(1, 2)))
    client, first = client_and_run(children[0])
    _, second = client_and_run(children[1])
    parents = {client.get_run(each).data.tags["mlflow.parentRunId"] for each in (first, second)}
    assert len(parents) == 1
    parent = client.get_run(parents.pop())
    assert parent.info.run_name == "it's a sweep"
    assert parent.info.status == "FINISHED"
    third = record_run(run_config(tmp_path, "third", parent_run=first), range(1, 2))
    tags = client.get_run(client_and_run(third)[1]).data.tags
    assert tags["mlflow.parentRunId"] == first


def test_every_node_tells_its_own_system_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(tmp_path, system_metrics_s=0.05)
    run_dir = record_run(config, range(1, 3))
    client, run_id = client_and_run(run_dir)
    name = f"system/{node_name()}/cpu_utilization_percentage"
    with node_metrics(run_dir, config.tracking):
        pass  # the shortest run: one look at its end
    first = steps_of(client, run_id, name)
    assert first[:1] == [0]
    with node_metrics(run_dir, config.tracking):
        pass
    assert steps_of(client, run_id, name) == [*first, first[-1] + 1]
    monkeypatch.setattr(platform, "node", lambda: "gpu 2 (rack)")
    with node_metrics(run_dir, config.tracking):
        pass
    assert steps_of(client, run_id, "system/gpu-2--rack-/cpu_utilization_percentage")[:1] == [0]
    monkeypatch.undo()
    memory = f"system/{node_name()}/system_memory_usage_megabytes"
    assert client.get_run(run_id).data.metrics[memory] > 0
    assert look_at(run_dir).waiting == 0


def test_a_folder_that_cannot_be_written_does_not_stop_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_config(tmp_path)
    run_dir = run_dir_of(config)
    run_dir.mkdir(parents=True)
    (run_dir / "tracking").write_text("in the way")
    record_run(config, range(2))
    assert "training goes on" in caplog.text


def test_an_evaluation_joins_the_run(tmp_path: Path) -> None:
    run_dir = record_run(run_config(tmp_path), range(3))
    picture = tmp_path / "boxes.png"
    picture.write_bytes(b"boxes")
    assert record_evaluation(
        run_dir, {"vqa/accuracy": 0.9}, step=2, dataset=str(tmp_path / "train"), pictures=[picture]
    )
    client, run_id = client_and_run(run_dir)
    run = client.get_run(run_id)
    assert run.data.metrics["evaluation/vqa/accuracy"] == 0.9
    assert run.info.status == "FINISHED"
    assert "evaluation" in {t.value for i in run.inputs.dataset_inputs for t in i.tags}
    assert "pictures/boxes.png" in {f.path for f in client.list_artifacts(run_id, "pictures")}


def test_an_untracked_run_has_nothing_to_sync(tmp_path: Path) -> None:
    assert record_evaluation(tmp_path, {"vqa/accuracy": 0.9}) is False
    assert sync_run(tmp_path) == 0


def test_what_mlflow_refuses_is_kept_and_its_neighbours_arrive(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_config(tmp_path)
    hooks: tuple[MlflowHook, object] = begin(config)
    hook = hooks[0]
    hook.on_log(1, {"bad name!?": 1.0, "train/loss": 0.5})
    hook.on_log(2, {"train/loss": 0.4})
    finish(hook, config, 2)
    client, run_id = client_and_run(run_dir_of(config))
    assert client.get_run(run_id).info.status == "FINISHED"
    assert steps_of(client, run_id) == [1, 2]
    refused = (run_dir_of(config) / "tracking" / "refused.jsonl").read_text().splitlines()
    assert [json.loads(line)["entry"]["values"] for line in refused] == [{"bad name!?": 1.0}]
    assert look_at(run_dir_of(config)).refused == 1
    assert "refused" in caplog.text


def test_what_a_full_journal_left_out_is_taken_from_the_runs_own_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere, store = "http://127.0.0.1:9", f"sqlite:///{tmp_path}/runs/mlflow.db"
    config = run_config(tmp_path, uri=nowhere, journal_mb=1.0)
    make_store(tmp_path / "runs")
    run_dir = run_dir_of(config)
    hooks = begin(config)
    # Each line is long, so that few fill the journal.
    pad = {f"train/{'x' * 200}{n}": 1.0 for n in range(100)}
    for step in range(1, 81):
        for hook in reversed(hooks):
            hook.on_log(step, {"train/loss": 1.0 / step, **pad})
    finish(hooks[0], config, 80)
    lost = look_at(run_dir).lost["metrics"]
    assert 0 < lost < 80
    assert caplog.text.count("metrics.jsonl of the run keeps the metrics") == 1
    sync_run(run_dir, store)
    assert "metrics" not in look_at(run_dir).lost
    assert look_at(run_dir).waiting == 0
    client = open_client(StoreLocation(uri=store, artifact_root=None))
    run_id = look_at(run_dir).run_id
    assert run_id is not None
    assert steps_of(client, run_id) == list(range(1, 81))
    assert client.get_run(run_id).data.tags["tracking.lost_metrics"] == "0"
    assert sync_run(run_dir, store) == 0
