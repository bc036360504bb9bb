"""MLflow and object stores: real ones, ones that never answer, and ones that refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.doctor.object_store import check_store
from jobs.doctor.tracking import check_tracking
from tests.support.mlflow_server import MlflowServer, answering_server, free_port, hanging_server
from tests.support.s3_server import BUCKET, ENVIRONMENT, S3Server, s3_server


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("URI", "USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    for name in ("MAX_RETRIES", "BACKOFF_FACTOR", "TIMEOUT"):
        # What a user's environment says must not lift the bound.
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", "9")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


def test_a_store_is_listed_and_read_within_bounds(server: S3Server) -> None:
    server.put({"train/shards/a.tar": bytes(3 * 2**20), "train/shards/b.tar": bytes(2**20)})
    server.put({f"train/shards/deep/{name}": b"x" for name in "abc"})
    for path, size in (("train", 4.0), ("train/shards", 4.0), ("train/shards/b.tar", 1.0)):
        check = check_store(f"s3://{BUCKET}/{path}?endpoint={server.url}")
        assert check.status in ("ok", "warning"), check.found  # the rate is the machine's
        assert check.found.startswith(f"s3://{BUCKET}/{path}: listed in ")
        assert f"({size} MiB)" in check.found


def test_no_more_is_read_than_the_bound(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.put({f"many/{name}": bytes(2**20) for name in "abcd"})
    monkeypatch.setattr("jobs.doctor.object_store._MOST_BYTES", 2 * 2**20)
    monkeypatch.setattr("jobs.doctor.object_store._PIECE", 2**20)
    assert "(2.0 MiB)" in check_store(f"s3://{BUCKET}/many?endpoint={server.url}").found


def test_a_store_without_data_and_one_without_the_bucket(server: S3Server) -> None:
    server.put({"empty/": b""})
    assert "nothing to read" in check_store(f"s3://{BUCKET}/empty?endpoint={server.url}").found
    for path in (f"{BUCKET}/nowhere", "no-such-bucket/x"):
        check = check_store(f"s3://{path}?endpoint={server.url}")
        assert check.failed
        assert check.found.startswith(f"s3://{path}")
        assert check.advice


def test_a_store_that_is_down_or_never_answers_fails_in_time() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    check = check_store(f"s3://{BUCKET}/x?endpoint={address}")
    assert check.failed
    assert "cannot be reached" in check.found
    with hanging_server() as hanging:
        check = check_store(f"s3://{BUCKET}/x?endpoint={hanging}", limit_s=1)
    assert check.failed
    assert "no answer within 1 s" in check.found


def test_a_local_store_is_not_made_by_looking_at_it(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    check = check_tracking(None, runs)
    assert check.status == "ok"
    assert f"{runs}/mlflow.db, which the first run makes" in check.found
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mlflow.db").mkdir()
    assert check_tracking(None, tmp_path).failed


def test_a_tracking_server_answers(tmp_path: Path) -> None:
    server = MlflowServer(tmp_path)
    try:
        server.start()
        check = check_tracking(server.uri, tmp_path)
    finally:
        server.kill()
    assert check.status == "ok", check.found
    assert "experiments can be read" in check.found


def test_a_server_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hanging_server() as address:
        check = check_tracking(address, tmp_path, limit_s=1)
        assert check.failed
        assert check.found == f"{address}: no answer within 1 s"
        assert "prefixworks runs sync" in check.advice
        # A run goes on without it, so one that was not asked for is a warning.
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert check_tracking(None, tmp_path, limit_s=1).status == "warning"


def test_a_refusal_is_told_without_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse")
    with answering_server(403) as (address, _):
        host = address.removeprefix("http://")
        check = check_tracking(f"http://reader:correct-horse@{host}", tmp_path)
    assert check.failed
    assert "403" in check.found
    assert "correct-horse" not in check.found


def test_an_unknown_kind_of_store_fails(tmp_path: Path) -> None:
    check = check_tracking("gopher://store/x", tmp_path)
    assert check.failed
    assert "gopher" in check.found
