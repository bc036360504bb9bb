"""Runs in a real MLflow store: what is recorded, how a run continues, and what an outage costs."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipeline.config import RunConfig
from pipeline.tracking.config import TrackingConfig
from pipeline.tracking.identity import read_identity
from pipeline.tracking.journal import Journal
from pipeline.tracking.mlflow import MlflowHook, record_evaluation, sync_run
from pipeline.training.data_config import DataConfig
from pipeline.training.summary import TrainingResult
from tests.support.mlflow_store import make_store
from tests.support.prepared import manifest_folder


def run_config(folder: Path, **tracking: object) -> RunConfig:
    data = folder / "data"
    if not data.exists():
        manifest_folder(data)
        make_store(folder / "runs")
    return RunConfig(
        name="shapes",
        output_dir=str(folder / "runs"),
        data=DataConfig(train=[str(data)], validation=[str(data)]),
        tracking=TrackingConfig(**tracking),  # type: ignore[arg-type]
    )


def record_run(config: RunConfig, steps: range, *, end: bool = True) -> Path:
    """Lets a hook see a short run."""
    run_dir = Path(config.output_dir) / config.name
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text("name: shapes\n")
    (run_dir / "pictures").mkdir(exist_ok=True)
    (run_dir / "pictures" / "loss.png").write_bytes(b"picture")
    hook = MlflowHook()
    hook.on_start(run_dir, config)
    for step in steps:
        hook.on_log(step, {"train/loss": 1.0 / (step + 1)})
    hook.on_validation(steps[-1], {"vqa/accuracy": 0.5})
    if end:
        result = TrainingResult(
            output_dir=run_dir,
            best_metrics={"vqa/accuracy": 0.5},
            final_step=steps[-1],
            trainable_parameters=8,
            base_parameters=800,
            fingerprint_before="sha256:aa",
            fingerprint_after="sha256:aa",
            seconds=2.0,
        )
        hook.on_end(result)
    return run_dir


def client_and_run(run_dir: Path) -> tuple[MlflowClient, str]:
    identity = read_identity(run_dir)
    assert identity is not None
    assert identity.run_id is not None
    return MlflowClient(tracking_uri=identity.location.uri), identity.run_id


def loss_steps(client: MlflowClient, run_id: str) -> list[int]:
    return sorted(metric.step for metric in client.get_metric_history(run_id, "train/loss"))


@pytest.fixture(autouse=True)
def no_store_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_run_is_recorded_whole(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    (tmp_path / "runs" / "mlflow.db").unlink()  # the run makes its own store
    run_dir = record_run(config, range(20))
    client, run_id = client_and_run(run_dir)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "shapes"
    assert run.data.params["name"] == "shapes"
    assert json.loads(run.data.params["data.train"]) == [str(tmp_path / "data")]
    assert loss_steps(client, run_id) == list(range(20))
    assert run.data.metrics["vqa/accuracy"] == run.data.metrics["best/vqa/accuracy"] == 0.5
    assert run.data.tags["base.fingerprint.after"] == "sha256:aa"
    assert "library.torch" in run.data.tags
    inputs = {i.tags[0].value: i.dataset for i in run.inputs.dataset_inputs}
    assert set(inputs) == {"train", "validation"}
    profile = json.loads(inputs["train"].profile)
    assert profile["digest"].removeprefix("sha256:").startswith(inputs["train"].digest)
    assert profile["counts"] == {"in": 8, "out": 7, "quarantined": 1}
    assert str(tmp_path / "data") in inputs["train"].source
    files = {f.path for f in client.list_artifacts(run_id)}
    assert {"config.yaml", "pictures"} <= files
    assert [f.path for f in client.list_artifacts(run_id, "pictures")] == ["pictures/loss.png"]
    assert (Path(run_dir).parent / "mlflow.db").is_file()


def test_a_resumed_run_continues_its_mlflow_run(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    run_dir = record_run(config, range(5))
    client, run_id = client_and_run(run_dir)
    record_run(config, range(5, 9))
    assert client_and_run(run_dir)[1] == run_id
    assert loss_steps(client, run_id) == list(range(9))
    experiment = client.get_run(run_id).info.experiment_id
    assert len(client.search_runs([experiment])) == 1


def test_a_run_that_ends_early_says_so_and_goes_on(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    code = (
        "import sys\n"
        "from tests.integration.test_tracking import *\n"
        "record_run(run_config(Path(sys.argv[1])), range(3), end=False)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, check=True, timeout=100, cwd=root)
    run_dir = Path(config.output_dir) / config.name
    client, run_id = client_and_run(run_dir)
    assert client.get_run(run_id).info.status == "KILLED"
    assert loss_steps(client, run_id) == [0, 1, 2]
    record_run(config, range(3, 5))
    assert client.get_run(run_id).info.status == "FINISHED"
    assert loss_steps(client, run_id) == [0, 1, 2, 3, 4]


def test_a_folder_that_cannot_be_written_does_not_stop_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_config(tmp_path)
    run_dir = Path(config.output_dir) / config.name
    run_dir.mkdir(parents=True)
    (run_dir / "tracking").write_text("in the way")
    record_run(config, range(2))
    assert "training goes on" in caplog.text


def test_an_evaluation_joins_the_run(tmp_path: Path) -> None:
    run_dir = record_run(run_config(tmp_path), range(3))
    picture = tmp_path / "boxes.png"
    picture.write_bytes(b"boxes")
    assert record_evaluation(
        run_dir, {"vqa/accuracy": 0.9}, step=2, dataset=str(tmp_path / "data"), pictures=[picture]
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


def test_what_mlflow_refuses_is_kept_and_the_rest_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_config(tmp_path)
    run_dir = Path(config.output_dir) / config.name
    run_dir.mkdir(parents=True)
    hook = MlflowHook()
    hook.on_start(run_dir, config)
    hook.on_log(1, {"bad name!?": 1.0})
    hook.on_end(
        TrainingResult(
            output_dir=run_dir,
            best_metrics={},
            final_step=1,
            trainable_parameters=8,
            base_parameters=800,
            fingerprint_before="a",
            fingerprint_after="a",
            seconds=1.0,
        )
    )
    client, run_id = client_and_run(run_dir)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert "bad name" in (run_dir / "tracking" / "refused.jsonl").read_text()
    assert "refused" in caplog.text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """A real tracking server on loopback, stopped with its workers at the end."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--serve-artifacts"]
    command += ["--artifacts-destination", str(folder / "server"), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 15)
        server.wait(timeout=20)


def wait_until_healthy(uri: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, "the MLflow server ended"
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise TimeoutError(uri)


@pytest.mark.timeout(150)
def test_a_server_that_is_down_costs_a_warning_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    config = run_config(tmp_path, uri=f"http://127.0.0.1:{port}", close_timeout_s=5.0, retry_s=0.2)
    with caplog.at_level(logging.WARNING):
        started = time.monotonic()
        run_dir = record_run(config, range(30))
        assert time.monotonic() - started < 15
    assert caplog.text.count("training goes on") == 1
    assert "registry sync" in caplog.text
    journal = Journal(run_dir)
    waiting = len(list(journal.pending()))
    assert waiting >= 35

    with mlflow_server(tmp_path, port):
        assert sync_run(run_dir) == waiting
        client, run_id = client_and_run(run_dir)
        assert client.get_run(run_id).info.status == "FINISHED"
        assert loss_steps(client, run_id) == list(range(30))
        assert sync_run(run_dir) == 0
        # Even if the position and the run id were lost, nothing is recorded twice.
        journal.mark_delivered(0)
        identity = read_identity(run_dir)
        assert identity is not None
        identity.run_id = None
        identity.save(journal.folder)
        assert sync_run(run_dir) == waiting
        assert client_and_run(run_dir)[1] == run_id
        assert loss_steps(client, run_id) == list(range(30))
        assert [f.path for f in client.list_artifacts(run_id, "pictures")] == ["pictures/loss.png"]
