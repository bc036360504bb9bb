"""A tracking server that is killed, hangs or refuses: training goes on, and nothing is lost."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import runs
from pipeline.tracking.journal import Journal
from pipeline.tracking.sync import look_at, sync_run
from tests.support.mlflow_server import (
    MlflowServer,
    answering_server,
    free_port,
    hanging_server,
)
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

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def no_store_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URI", "USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


def wait_until_delivered(run_dir: Path) -> None:
    until = time.monotonic() + 60
    while look_at(run_dir).waiting and time.monotonic() < until:
        time.sleep(0.05)
    assert look_at(run_dir).waiting == 0


def test_a_server_that_dies_and_comes_back_has_everything_once(
    server: MlflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_config(tmp_path, uri=server.uri, request_timeout_s=5)
    run_dir = run_dir_of(config)
    hooks = begin(config)
    log_steps(hooks, range(1, 20))
    wait_until_delivered(run_dir)
    server.kill()
    log_steps(hooks, range(20, 40))
    keep_checkpoint(run_dir, 39)
    validate(hooks, 39)
    until = time.monotonic() + 30
    while "training goes on" not in caplog.text and time.monotonic() < until:
        time.sleep(0.05)
    server.start()
    log_steps(hooks, range(40, 60))
    finish(hooks[0], config, 59)

    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [("training goes on" in record.message) for record in warnings] == [True], caplog.text
    assert look_at(run_dir).waiting == 0
    client, run_id = client_and_run(run_dir)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert steps_of(client, run_id) == list(range(1, 60))
    assert steps_of(client, run_id, "vqa/accuracy") == [39]
    experiment = client.get_run(run_id).info.experiment_id
    models = [
        model
        for model in client.search_logged_models([experiment])
        if model.source_run_id == run_id
    ]
    assert [model.name for model in models] == ["shapes-step-000039"]
    assert {f.path for f in client.list_artifacts(run_id)} >= {"config.yaml", "pictures"}


def test_what_a_dead_server_missed_is_synced_exactly_once(
    server: MlflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    config = run_config(tmp_path, uri=dead, close_timeout_s=60.0)
    run_dir = record_run(config, range(1, 300))
    assert caplog.text.count("training goes on") == 1
    assert f"prefixworks runs sync {run_dir}" in caplog.text
    journal = Journal(run_dir)
    waiting = len(list(journal.pending()))
    assert waiting >= 300
    # The sync itself is killed again and again, wherever it is.
    command = [sys.executable, "-m", "jobs.runs", "sync", str(run_dir), f"--uri={server.uri}"]
    before, kills = journal.delivered, 0
    while journal.delivered == before:
        syncing = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while journal.delivered == before and syncing.poll() is None:
            time.sleep(0.01)
        syncing.send_signal(signal.SIGKILL)
        kills += syncing.wait(timeout=30) == -signal.SIGKILL
    assert kills == 1
    assert 0 < len(list(journal.pending())) < waiting
    sync_run(run_dir, server.uri)
    assert look_at(run_dir).waiting == 0
    assert sync_run(run_dir, server.uri) == 0
    # Even if the place and the run's id were lost, nothing is recorded twice.
    (run_dir / "tracking" / "delivered.json").unlink()
    identity = run_dir / "tracking" / "run.json"
    known = json.loads(identity.read_text())
    run_id = known["run_id"]
    identity.write_text(json.dumps({**known, "run_id": None}))
    assert sync_run(run_dir, server.uri) == waiting
    assert json.loads(identity.read_text())["run_id"] == run_id
    assert json.loads(identity.read_text())["location"]["uri"] == server.uri
    client, _ = client_and_run(run_dir)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert steps_of(client, run_id) == list(range(1, 300))
    assert steps_of(client, run_id, "best/vqa/accuracy") == [299]


@pytest.mark.parametrize("kind", ["hanging", "500", "403", "200"])
def test_a_server_that_does_not_help_costs_one_warning(
    kind: str,
    server: MlflowServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def record(uri: str) -> Path:
        config = run_config(
            tmp_path, f"run-{kind}", uri=uri, request_timeout_s=1, close_timeout_s=60.0
        )
        return record_run(config, range(1, 30))

    if kind == "hanging":
        with hanging_server() as uri:
            run_dir = record(uri)
    else:
        with answering_server(int(kind)) as (uri, _):
            run_dir = record(uri)
    said = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert [("training goes on" in line, "runs sync" in line) for line in said] == [
        (True, False),
        (False, True),
    ]
    # The run's own record is whole, and the journal holds everything.
    steps = [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").open()]
    assert steps == [*range(1, 30), 29]
    assert look_at(run_dir).pending["metrics"] == 31

    arguments = ["sync", f"--output-dir={tmp_path / 'runs'}", "--json"]
    assert runs.main([*arguments, "--dry-run"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {"run": str(run_dir), "waiting": look_at(run_dir).waiting}
    assert runs.main([*arguments, f"--uri={server.uri}"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["delivered"], row["left"]) == (row["waiting"], 0)
    known = json.loads((run_dir / "tracking" / "run.json").read_text())
    assert row["mlflow_run"] == known["run_id"]


def test_credentials_go_through_mlflows_own_variables_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "open sesame")
    with answering_server(401) as (uri, seen):
        config = run_config(tmp_path, "basic", uri=uri, close_timeout_s=30.0)
        record_run(config, range(1, 3))
    # base64 of somebody:open sesame
    assert seen[0] == "Basic c29tZWJvZHk6b3BlbiBzZXNhbWU="
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "open-sesame")
    with answering_server(401) as (uri, seen):
        record_run(run_config(tmp_path, "token", uri=uri, close_timeout_s=30.0), range(1, 3))
    assert seen[0] == "Bearer open-sesame"
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
    with answering_server(401) as (uri, seen):
        whole = uri.replace("http://", "http://somebody:sesame-in-uri@")
        record_run(run_config(tmp_path, "uri", uri=whole, close_timeout_s=30.0), range(1, 3))
    assert seen[0] is not None
    assert seen[0].startswith("Basic ")
    assert caplog.text.count("training goes on") == 3
    assert "sesame" not in caplog.text
    for path in (tmp_path / "runs").rglob("*"):
        if path.is_file() and path.name != "mlflow.db":
            assert b"sesame" not in path.read_bytes(), path
    assert "somebody:***@" in (tmp_path / "runs" / "uri" / "tracking" / "run.json").read_text()
    assert os.environ.get("MLFLOW_TRACKING_URI") is None
