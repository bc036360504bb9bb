"""Prompts in a real MLflow registry: versions, aliases, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from jobs.registry import main
from pipeline.errors import RegistryError
from pipeline.registry.artifact import read_record
from pipeline.registry.reference import parse_reference
from pipeline.registry.store import PromptRegistry
from pipeline.tracking.config import TrackingConfig, resolve_store
from tests.support.mlflow_store import make_store
from tests.support.small_prompt import small_base, small_prompt


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base, two prompts for it, and no MLflow store from outside."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PREFIXWORKS_BASE", str(tmp_path / "base"))
    base = small_base(tmp_path / "base")
    small_prompt(tmp_path / "first", base, seed=1)
    small_prompt(tmp_path / "second", base, seed=2)
    make_store(tmp_path / "runs")
    return tmp_path


@pytest.fixture
def registry(place: Path) -> PromptRegistry:
    return PromptRegistry(resolve_store(TrackingConfig(), place / "runs"))


def test_versions_aliases_and_tags(place: Path, registry: PromptRegistry) -> None:
    first = registry.register(place / "first", aliases=["champion"])
    second = registry.register(place / "second", aliases=["challenger"])
    assert (first.name, first.version, first.aliases) == ("shapes", 1, ("champion",))
    assert (second.version, second.aliases) == (2, ("challenger",))
    record = read_record(place / "second")
    tags = second.tags
    assert tags["task"] == "vqa"
    assert (tags["base"], tags["method"], tags["length"]) == ("ofa-small", "prefix", "4")
    assert tags["trainable_parameters"] == str(record.meta.trainable_parameters)
    assert (tags["metric"], tags["metric_value"]) == ("vqa/accuracy", "0.5")
    assert tags["data.train"] == "world sha256:cc"
    assert tags["prompt_digest"] == record.digest
    assert "# shapes" in second.description

    assert registry.set_alias("shapes@challenger", "champion").version == 2
    assert registry.get("models:/shapes@champion").version == 2
    assert registry.get("shapes/1").aliases == ()
    assert [p.version for p in registry.versions()] == [1, 2]
    assert registry.names() == ["shapes"]


def test_downloaded_artifact_is_the_registered_one(place: Path, registry: PromptRegistry) -> None:
    registry.register(place / "first", "renamed", aliases=["champion"])
    folder = registry.download("renamed@champion", place / "fetched")
    for path in (place / "first").iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_a_version_belongs_to_its_run(place: Path, registry: PromptRegistry) -> None:
    client = MlflowClient(tracking_uri=registry.location.uri)
    experiment = client.create_experiment("mine", artifact_location=str(place / "files"))
    run_id = client.create_run(experiment).info.run_id
    assert registry.register(place / "first", run_id=run_id).run_id == run_id
    assert registry.register(place / "first").run_id not in (None, run_id)


def test_no_pickle_is_stored(place: Path, registry: PromptRegistry) -> None:
    registry.register(place / "first")
    stored = [p for p in (place / "runs" / "mlartifacts").rglob("*") if p.is_file()]
    assert {"pyfunc.py", "prompt.safetensors", "MLmodel"} <= {p.name for p in stored}
    assert not [p for p in stored if p.suffix in {".pkl", ".pt", ".bin"}]
    requirements = next(p for p in stored if p.name == "requirements.txt").read_text().split()
    assert all("==" in line for line in requirements)
    assert any(line.startswith("torch==") for line in requirements)


def test_what_is_not_there_is_named(place: Path, registry: PromptRegistry) -> None:
    with pytest.raises(RegistryError, match=r"shapes@champion is not registered.*empty"):
        registry.get("shapes@champion")
    registry.register(place / "first")
    with pytest.raises(RegistryError, match=r"shape/1 is not registered.*shapes"):
        registry.get("shape/1")
    with pytest.raises(RegistryError, match="shapes@champion is not registered"):
        registry.get("shapes@champion")
    with pytest.raises(RegistryError, match="no prompt 'circles'"):
        registry.versions("circles")
    with pytest.raises(RegistryError, match="no MLflow store"):
        PromptRegistry(resolve_store(TrackingConfig(), place / "nowhere"))


def test_a_damaged_artifact_is_not_registered(place: Path, registry: PromptRegistry) -> None:
    (place / "first" / "prompt.safetensors").write_bytes(b"")
    with pytest.raises(RegistryError, match="damaged"):
        registry.register(place / "first")
    assert registry.names() == []


@pytest.mark.parametrize("text", ["shapes", "shapes/x", "@champion", "models:/"])
def test_references(text: str) -> None:
    with pytest.raises(RegistryError, match="neither"):
        parse_reference(text)
    assert parse_reference("models:/a@b") == ("a", None, "b")
    assert parse_reference("a/3") == ("a", "3", None)


def test_command_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)

    def run(*argv: str) -> str:
        assert main(argv) == 0
        return capsys.readouterr().out

    assert "shapes version 1 @champion" in run("register", "first", "--alias", "champion")
    run("register", "second")
    listed = json.loads(run("list", "--json"))
    assert [(p["version"], p["aliases"]) for p in listed] == [(1, ["champion"]), (2, [])]
    assert "champion" in run("list", "shapes")
    assert "shapes@champion is now version 2" in run("promote", "shapes/2", "--force")
    assert json.loads(run("show", "shapes@champion", "--json"))["version"] == 2
    assert "base = ofa-small" in run("show", "shapes@champion")
    compared = json.loads(run("compare", "shapes/1", "shapes/2", "--json"))
    assert compared["metrics"] == {"vqa/accuracy": [0.5, 0.5]}
    run("download", "shapes/1", "fetched")
    assert read_record("fetched") == read_record("first")
    with pytest.raises(RegistryError, match="exists already"):
        main(["download", "shapes/1", "fetched"])
