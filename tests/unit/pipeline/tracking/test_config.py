"""Which store a run uses."""

from pathlib import Path

import pytest

from pipeline.tracking.config import TrackingConfig, resolve_store


def test_default_is_a_local_store_beside_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = resolve_store(TrackingConfig(), tmp_path)
    assert store.uri == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    assert store.artifact_root == str(tmp_path.resolve() / "mlartifacts")


def test_relative_sqlite_paths_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = resolve_store(TrackingConfig(uri="sqlite:///a/b.db"), "runs")
    assert store.uri == f"sqlite:///{tmp_path.resolve()}/a/b.db"
    assert store.artifact_root == str(tmp_path.resolve() / "a" / "mlartifacts")


def test_recipe_comes_before_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert resolve_store(TrackingConfig(), tmp_path).uri == "http://tracking:5000"
    assert resolve_store(TrackingConfig(), tmp_path).artifact_root is None
    chosen = resolve_store(TrackingConfig(uri="http://other:80"), tmp_path)
    assert chosen.uri == "http://other:80"
