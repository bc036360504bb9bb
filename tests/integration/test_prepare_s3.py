"""`prefixworks prepare` from an object store: same bytes as from a folder, and one clear error."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.config import DatasetConfig, PrepareConfig, SourceConfig
from data_prep.manifest import read_manifest
from data_prep.stores import close_stores
from data_prep.synthetic import write_world
from jobs.cli import main
from pipeline.config_reader import to_yaml
from tests.support.s3_server import BUCKET, ENVIRONMENT, S3Server, s3_server
from tests.support.small_world import world_sources

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

SPLIT = "test"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("s3") / "world"
    write_world(folder, domain="downstream", scenes={SPLIT: 12}, seed=7, processes=1)
    return folder


@pytest.fixture
def server(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server() as server:
        server.put_folder(world, "world")
        environment = {"AWS_ENDPOINT_URL": server.url, "AWS_REGION": "us-east-1", **ENVIRONMENT}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        close_stores()
        yield server
        close_stores()


def recipe(folder: Path, sources: list[SourceConfig]) -> str:
    config = PrepareConfig(
        output_dir=str(folder / "out"),
        datasets={"world": DatasetConfig(sources=sources)},
        shard_size=8,
        workers=1,
    )
    folder.mkdir(exist_ok=True)
    (folder / "prepare.yaml").write_text(to_yaml(config))
    return f"--config={folder / 'prepare.yaml'}"


def at_s3(world: Path) -> list[SourceConfig]:
    """The sources of a world, with every path in the bucket."""

    def moved(path: str | None) -> str | None:
        return path and path.replace(str(world), f"s3://{BUCKET}/world")

    return [
        replace(
            source,
            images=str(moved(source.images)),
            annotations=moved(source.annotations),
            questions=moved(source.questions),
            instances=moved(source.instances),
        )
        for source in world_sources(world, SPLIT)
    ]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def from_folder(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("folder")
    assert main(["prepare", recipe(folder, world_sources(world, SPLIT))]) == 0
    return files_of(folder / "out" / "world")


def test_images_and_annotations_at_s3_give_the_bytes_of_a_folder(
    server: S3Server,
    world: Path,
    tmp_path: Path,
    from_folder: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["prepare", recipe(tmp_path, at_s3(world))]
    assert main(arguments) == 0
    folder = tmp_path / "out" / "world"
    assert read_manifest(folder).counts["quarantined"] == 0
    assert files_of(folder) == from_folder
    capsys.readouterr()
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_store_that_stops_is_one_error_and_the_run_continues_when_it_is_back(
    server: S3Server,
    world: Path,
    tmp_path: Path,
    from_folder: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "out" / "world"
    arguments = recipe(tmp_path, at_s3(world))
    command = [sys.executable, "-m", "jobs.prepare", arguments]
    with (tmp_path / "stderr").open("wb") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )
        try:
            while process.poll() is None and not list((folder / ".ledger").glob("*.json")):
                time.sleep(0.005)
            server.stop()
            assert process.wait(timeout=300) == 1
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=60)
    error = (tmp_path / "stderr").read_text()
    assert error.count("\n") == 1
    assert f"s3://{BUCKET}/world/images" in error
    assert "cannot be reached" in error
    assert "check the network" in error
    assert not (folder / "manifest.json").exists()
    finished = list((folder / ".ledger").glob("*.json"))
    shards = {path.name: path.read_bytes() for path in folder.glob("shard-*")}
    assert 0 < len(finished) <= len(shards) < sum(name.startswith("shard-") for name in from_folder)
    assert shards.items() <= from_folder.items()

    server.start()
    capsys.readouterr()
    assert main(["prepare", arguments]) == 0
    assert f"{len(finished)} kept" in capsys.readouterr().out
    assert files_of(folder) == from_folder
    assert not list(folder.rglob("*.tmp"))
