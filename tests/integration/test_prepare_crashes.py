"""Preparation on a real cluster that loses nodes, drivers, disks and folders.

Whatever is lost, what stands in the end are the bytes of a run that nothing happened to, with every
sample there once.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from data_prep.config import DatasetConfig, PrepareConfig
from data_prep.dataset import finish, locked
from data_prep.manifest import read_manifest
from data_prep.plan import plan_dataset
from data_prep.shard_job import build_shard
from jobs.cli import main
from jobs.data_replay import main as replay
from pipeline.config_reader import to_yaml
from tests.support.raw_data import jpeg, prepare_config, sources, write_raw
from tests.support.ray_cluster import head, joined

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SHARDS = 40


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crashes") / "raw"
    write_raw(folder, images=40)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with head(cpus=4) as address:
        yield address


def config_of(raw: Path, folder: Path, **changes: object) -> PrepareConfig:
    return prepare_config(raw, folder / "out", **{"shard_size": 5, "workers": None, **changes})


def recipe(raw: Path, folder: Path, **changes: object) -> str:
    path = folder / "prepare.yaml"
    path.write_text(to_yaml(config_of(raw, folder, **changes)))
    return f"--config={path}"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def keys_of(folder: Path) -> list[str]:
    keys = []
    for path in sorted(folder.glob("shard-*.tar")):
        with tarfile.open(path) as tar:
            keys += [name for name in tar.getnames() if name.endswith(".json")]
    return keys


def in_this_process(config: PrepareConfig) -> dict[str, bytes]:
    """The bytes that a preparation without any cluster writes."""
    plan = plan_dataset(config, "mix")
    with locked(plan.folder):
        for number in range(plan.shards):
            build_shard(plan.task(number))
        finish(plan, config.max_reject_rate)
    return files_of(plan.folder)


@pytest.fixture(scope="module")
def expected(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return in_this_process(config_of(raw, tmp_path_factory.mktemp("expected")))


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.prepare", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_shards(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 240
    while len(list((folder / ".ledger").glob("shard-*.json"))) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "no shards in time"
        time.sleep(0.002)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_writes_the_same_bytes(
    raw: Path, tmp_path: Path, expected: dict[str, bytes], cluster: str, workers: int
) -> None:
    arguments = [recipe(raw, tmp_path), f"--address={cluster}", f"--workers={workers}"]
    assert main(["prepare", *arguments]) == 0
    folder = tmp_path / "out" / "mix"
    assert files_of(folder) == expected
    assert keys_of(folder) == [f"{i:09d}.json" for i in range(5 * SHARDS)]


def test_a_killed_driver_costs_only_unfinished_shards(
    raw: Path,
    tmp_path: Path,
    expected: dict[str, bytes],
    cluster: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Three drivers die one after the other, on a cluster where their tasks may live on."""
    draw = random.Random(7)
    folder = tmp_path / "out" / "mix"
    arguments = [recipe(raw, tmp_path), f"--address={cluster}", "--workers=2"]
    kept = 0
    for number in range(3):
        driver = start(*arguments)
        try:
            kept = draw.randint(12 * number + 1, 12 * number + 8)
            wait_for_shards(folder, kept, driver)
        finally:
            os.kill(driver.pid, signal.SIGKILL)
            driver.communicate()
        assert not (folder / "manifest.json").exists(), "it was killed too late to test anything"
    assert main(["prepare", *arguments]) == 0
    said = capsys.readouterr().out
    made = int(said.split(" shards made")[0].split()[-1])
    assert made <= SHARDS - kept
    assert files_of(folder) == expected
    assert keys_of(folder) == [f"{i:09d}.json" for i in range(5 * SHARDS)]


def test_a_killed_driver_with_older_input_cannot_spoil_the_next(
    raw: Path, tmp_path: Path, cluster: str
) -> None:
    shutil.copytree(raw, tmp_path / "raw")
    config = recipe(tmp_path / "raw", tmp_path)
    driver = start(config, f"--address={cluster}")
    folder = tmp_path / "out" / "mix"
    try:
        wait_for_shards(folder, 2, driver)
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.communicate()
    for i in range(1, 41):
        (tmp_path / "raw" / "images" / f"{i:012d}.jpg").write_bytes(jpeg(i + 100))
    assert main(["prepare", config, f"--address={cluster}"]) == 0
    fresh = in_this_process(config_of(tmp_path / "raw", tmp_path / "fresh"))
    assert files_of(folder) == fresh


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One caption a shard, each with an image that takes a worker a while."""
    folder = tmp_path_factory.mktemp("heavy") / "raw"
    write_raw(folder, images=SHARDS)
    image = Image.effect_noise((2400, 1800), 60)
    for i in range(1, SHARDS + 1):
        path = folder / "images" / f"{i:012d}.jpg"
        path.unlink()
        if i == 1:
            image.save(path, "PNG", compress_level=1)
        else:
            os.link(folder / "images" / f"{1:012d}.jpg", path)
    return folder


@pytest.mark.parametrize("seed", [1, 2])
def test_a_lost_node_costs_only_its_unfinished_shards(
    heavy: Path, tmp_path: Path, seed: int
) -> None:
    captions = DatasetConfig(sources=[sources(heavy)["coco_captions"]])
    config = config_of(heavy, tmp_path, shard_size=1)
    config = dataclasses.replace(config, datasets={"mix": captions})
    (tmp_path / "prepare.yaml").write_text(to_yaml(config))
    folder = tmp_path / "out" / "mix"
    with head(cpus=1) as address, joined(address) as node:
        driver = start(f"--config={tmp_path / 'prepare.yaml'}", f"--address={address}")
        try:
            wait_for_shards(folder, random.Random(seed).randint(2, SHARDS // 2), driver)
            node.lose("_build")
            finished = len(list((folder / ".ledger").glob("shard-*.json")))
            said = driver.communicate(timeout=300)[0]
        finally:
            driver.kill()
    assert finished < SHARDS, "it was lost too late to test anything"
    assert driver.returncode == 0, said
    assert f"{SHARDS} shards made, 0 kept" in said
    alone = dataclasses.replace(config, output_dir=str(tmp_path / "alone"))
    assert files_of(folder) == in_this_process(alone)
    assert keys_of(folder) == [f"{i:09d}.json" for i in range(SHARDS)]


def test_replay_recovers_what_was_repaired(
    raw: Path, tmp_path: Path, cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(raw, tmp_path / "raw")
    images = tmp_path / "raw" / "images"
    missing, cut = images / f"{4:012d}.jpg", images / f"{6:012d}.jpg"
    missing.unlink()
    cut.write_bytes(jpeg(6)[:-300])
    arguments = [recipe(tmp_path / "raw", tmp_path, max_reject_rate=0.2), f"--address={cluster}"]
    assert main(["prepare", *arguments]) == 0
    folder = tmp_path / "out" / "mix"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    capsys.readouterr()

    assert replay(arguments) == 0
    said = capsys.readouterr().out
    assert "0 of 8 rejected samples recovered (none)" in said
    assert "nothing to do" in said
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.tar")} == before

    missing.write_bytes(jpeg(4))
    assert replay([*arguments, "--dry-run"]) == 0
    assert "8 samples are quarantined (4 missing_image, 4 truncated_image)" in (
        capsys.readouterr().out
    )
    assert replay(arguments) == 0
    said = capsys.readouterr().out
    assert "4 of 8 rejected samples recovered (4 missing_image)" in said
    assert "  vqav2/train/400" in said
    assert read_manifest(folder).counts == {"in": 200, "out": 196, "quarantined": 4}
    changed = [path for path, at in before.items() if path.stat().st_mtime_ns != at]
    assert 0 < len(changed) <= 4
    fresh = in_this_process(config_of(tmp_path / "raw", tmp_path / "fresh", max_reject_rate=0.2))
    assert files_of(folder) == fresh


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A small disk of memory; only root may have one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fails_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["prepare", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith("error: ")
    return error


def test_a_full_disk_is_one_line_and_leaves_whole_shards(
    raw: Path,
    tmp_path: Path,
    expected: dict[str, bytes],
    cluster: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with mounted(tmp_path / "disk", "size=700k") as disk:
        arguments = [recipe(raw, disk), f"--address={cluster}", f"--output_dir={disk / 'out'}"]
        error = fails_in_one_line(arguments, capsys)
        assert "cannot be written: No space left on device" in error
        folder = disk / "out" / "mix"
        found = files_of(folder)
        assert "manifest.json" not in found
        assert 0 < len(found) < SHARDS
        assert all(expected[name] == content for name, content in found.items())
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert main(["prepare", *arguments]) == 0
        assert ", 0 kept" not in capsys.readouterr().out
        assert files_of(folder) == expected


def test_a_read_only_output_is_one_line(
    raw: Path, tmp_path: Path, cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = recipe(raw, tmp_path)
    with mounted(tmp_path / "disk", "size=1m") as disk:
        (disk / "mix").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        error = fails_in_one_line([config, f"--address={cluster}", f"--output_dir={disk}"], capsys)
        assert "cannot be written: Read-only file system" in error


def test_an_output_that_vanishes_is_one_line(raw: Path, tmp_path: Path, cluster: str) -> None:
    driver = start(recipe(raw, tmp_path), f"--address={cluster}", "--workers=1")
    try:
        wait_for_shards(tmp_path / "out" / "mix", 2, driver)
        (tmp_path / "out").rename(tmp_path / "elsewhere")
        said = driver.communicate(timeout=240)[0]
    finally:
        driver.kill()
    assert driver.returncode == 1
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "cannot be written" in errors[0] or "is gone" in errors[0]
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_two_drivers_at_once_are_one_line(
    raw: Path, tmp_path: Path, cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [recipe(raw, tmp_path), f"--address={cluster}"]
    plan = plan_dataset(config_of(raw, tmp_path), "mix")
    with locked(plan.folder):
        assert "another preparation is writing there" in fails_in_one_line(arguments, capsys)


def test_images_whose_folder_goes_away_are_one_line_and_no_rejects(
    raw: Path, tmp_path: Path, cluster: str
) -> None:
    shutil.copytree(raw, tmp_path / "raw")
    config = recipe(tmp_path / "raw", tmp_path)
    driver = start(config, f"--address={cluster}", "--workers=1")
    try:
        wait_for_shards(tmp_path / "out" / "mix", 1, driver)
        (tmp_path / "raw" / "images").rename(tmp_path / "raw" / "gone")
        said = driver.communicate(timeout=240)[0]
    finally:
        driver.kill()
    assert driver.returncode == 1, said
    assert [line for line in said.splitlines() if "no such folder of images" in line], said
    assert "Traceback" not in said


def test_a_worker_that_always_dies_names_its_shard(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cluster: str
) -> None:
    from data_prep import ray_job

    plan = plan_dataset(config_of(raw, tmp_path), "mix")
    # A policy that no worker survives to read: unpickling it ends the process.
    task = dataclasses.replace(plan.task(3), records=(Deadly(),))  # type: ignore[arg-type]
    staging = tmp_path / "staging"
    staging.mkdir()
    with ray_job.cluster(cluster, 1) as capacity, pytest.raises(Exception, match="shard 3 was not"):
        ray_job.build_shards([task], staging, capacity, print)


class Deadly:
    """Ends the process that it is sent to."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (1,)
