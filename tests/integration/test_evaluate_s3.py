"""`prefixworks evaluate` on a data set in an object store: the same answers as in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.stores import close_stores
from jobs.cli import main
from tests.support.s3_server import BUCKET, ENVIRONMENT, S3Server, s3_server
from tests.support.small_prompt import small_base, small_prompt
from tests.support.small_world import prepared_world

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

LOCATION = f"s3://{BUCKET}/data/world"
FEW = ("--tasks=[grounding, vqa]", "--max_samples=4", "--beam_size=2", "--pictures=3")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_world(tmp_path_factory.mktemp("world"), scenes=3, shard_size=10)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments that name a prompt and its base."""
    folder = tmp_path_factory.mktemp("models")
    small_prompt(folder / "prompt", small_base(folder / "base"), tasks=("grounding", "vqa"))
    return [f"--prompt={folder / 'prompt'}", f"--base={folder / 'base'}"]


@pytest.fixture
def server(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server() as server:
        server.put_folder(dataset, "data/world")
        environment = {"AWS_ENDPOINT_URL": server.url, "AWS_REGION": "us-east-1", **ENVIRONMENT}
        environment["PREFIXWORKS_CACHE"] = str(tmp_path / "cache")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        close_stores()
        yield server
        close_stores()


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def test_answers_and_pictures_are_those_of_a_folder(
    server: S3Server, dataset: Path, models: list[str], tmp_path: Path
) -> None:
    for name, place in (("near", str(dataset)), ("far", LOCATION)):
        arguments = [*models, *FEW, f"--dataset={place}", f"--output={tmp_path / name}"]
        assert main(["evaluate", *arguments]) == 0
    near, far = report_of(tmp_path / "near"), report_of(tmp_path / "far")
    assert far["predictions"] == near["predictions"]
    assert far["dataset"] == near["dataset"]
    assert far["settings"]["dataset"] == LOCATION
    pictures = [tmp_path / name / "predictions.png" for name in ("near", "far")]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_a_dry_run_reads_the_manifest_there(
    server: S3Server, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*models, f"--dataset={LOCATION}", "--tasks=[vqa]", "--max_samples=2", "--dry-run"]
    assert main(["evaluate", *arguments]) == 0
    assert "on world: 2 vqa" in capsys.readouterr().out


def test_a_missing_data_set_is_one_line(
    server: S3Server, models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"s3://{BUCKET}/nowhere"
    assert main(["evaluate", *models, f"--dataset={place}", f"--output={tmp_path / 'out'}"]) == 1
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "error: " in text]
    assert place in line
    assert not (tmp_path / "out").exists()


def test_a_shard_that_was_changed_there_is_named(
    server: S3Server, models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.put({"data/world/shard-000000.tar": b"no tar"})
    arguments = [*models, *FEW, f"--dataset={LOCATION}", f"--output={tmp_path / 'out'}"]
    assert main(["evaluate", *arguments]) == 1
    assert f"{LOCATION}/shard-000000.tar" in capsys.readouterr().err
    assert not (tmp_path / "out" / "report.json").exists()
