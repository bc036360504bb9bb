"""`prefixworks prepare` with a real Ray cluster: same bytes, resumed, one line for each error."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from data_prep.config import DatasetConfig
from data_prep.manifest import read_manifest
from jobs.cli import main
from pipeline.config_reader import to_yaml
from tests.support.raw_data import jpeg, prepare_config, sources, write_raw
from tests.support.ray_cluster import free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepare") / "raw"
    write_raw(folder, images=40)
    return folder


def recipe(raw: Path, folder: Path) -> str:
    path = folder / "prepare.yaml"
    path.write_text(to_yaml(prepare_config(raw, folder / "out", shard_size=10)))
    return f"--config={path}"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def one_worker(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("one")
    assert main(["prepare", recipe(raw, folder), "--workers=1"]) == 0
    return files_of(folder / "out" / "mix")


def test_two_workers_write_the_same_bytes_and_a_second_run_nothing(
    raw: Path,
    tmp_path: Path,
    one_worker: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["prepare", recipe(raw, tmp_path), "--workers=2"]) == 0
    folder = tmp_path / "out" / "mix"
    assert files_of(folder) == one_worker
    assert read_manifest(folder).counts == {"in": 200, "out": 200, "quarantined": 0}
    said = capsys.readouterr().out
    assert "20 shards made, 0 kept" in said
    assert "peak memory: " in said
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert main(["prepare", recipe(raw, tmp_path), "--workers=2"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times


def test_a_killed_run_continues_to_the_same_bytes(
    raw: Path, tmp_path: Path, one_worker: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out" / "mix"
    command = [sys.executable, "-m", "jobs.prepare", recipe(raw, tmp_path), "--workers=1"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        for _ in range(6000):
            if list((folder / ".ledger").glob("*.json")) or process.poll() is not None:
                break
            time.sleep(0.01)
    finally:
        # The driver alone first, as an out-of-memory killer would; then what it had started.
        process.kill()
        process.wait(timeout=60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert not (folder / "manifest.json").exists(), "it was killed too late to test anything"
    assert main(["prepare", recipe(raw, tmp_path), "--workers=1"]) == 0
    assert ", 0 kept" not in capsys.readouterr().out
    assert files_of(folder) == one_worker


def test_a_worker_that_cannot_write_is_one_line(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A folder that stands where the first shard should be cannot be replaced by a file.
    (tmp_path / "out" / "mix" / "shard-000000.tar" / "x").mkdir(parents=True)
    assert main(["prepare", recipe(raw, tmp_path), "--workers=1"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "shard-000000.tar cannot be written" in error


def test_rejects_beyond_the_limit_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_raw(tmp_path / "raw")
    (tmp_path / "raw" / "images" / f"{1:012d}.jpg").write_bytes(jpeg(1)[:-300])
    assert main(["prepare", recipe(tmp_path / "raw", tmp_path)]) == 1
    error = capsys.readouterr().err
    # Image 1 has one sample of each format, and two expressions.
    assert error.startswith("error: mix: 6 of 30 samples were rejected")
    assert "6 truncated_image" in error
    assert not (tmp_path / "out" / "mix" / "manifest.json").exists()


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", recipe(raw, tmp_path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "samples   200 (40 caption, 40 detection, 40 entailment, 40 grounding, 40 vqa)" in said
    assert "shards    20 of 10, 0 finished already" in said
    assert "(an estimate from 64 images)" in said
    estimate = float(re.search(r"output    about ([0-9.]+) MB", said)[1])
    assert estimate == pytest.approx(0.8, rel=0.3)
    assert not (tmp_path / "out").exists()


def test_a_wrong_path_of_the_last_dataset_stops_before_the_first(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = prepare_config(raw, tmp_path / "out")
    wrong = replace(sources(raw)["vqav2"], questions=str(raw / "question.json"))
    path = tmp_path / "two.yaml"
    both = {**good.datasets, "last": DatasetConfig(sources=[wrong])}
    path.write_text(to_yaml(replace(good, datasets=both)))
    assert main(["prepare", f"--config={path}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: last, vqav2/train: questions: {raw}/question.json cannot be")
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_is_not_there_is_one_line(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"127.0.0.1:{free_port()}"
    assert main(["prepare", recipe(raw, tmp_path), f"--address={address}"]) == 1
    assert capsys.readouterr().err == f"error: no Ray cluster at {address}: Connection refused\n"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--shard_sise=3", "did you mean shard_size"),
        ("--image.max_side=0", "image.max_side must be at least 1"),
        ("--workers=many", "workers"),
    ],
)
def test_a_wrong_setting_is_one_line(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], argument: str, message: str
) -> None:
    assert main(["prepare", recipe(raw, tmp_path), argument]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize("name", ["prepare_upstream", "prepare_downstream"])
def test_the_recipes_are_valid(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "jobs" / "recipes" / f"{name}.yaml"
    datasets = yaml.safe_load(path.read_text())["datasets"]
    # Without raw data the recipe is understood and the first missing folder is named.
    assert main(["prepare", f"--config={path}", "--dry-run"]) in (0, 1)
    assert set(datasets) == {
        f"{name.removeprefix('prepare_')}_{s}" for s in ("train", "val", "test")
    }
    assert "no such setting" not in capsys.readouterr().err
