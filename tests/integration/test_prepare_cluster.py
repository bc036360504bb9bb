"""Preparation as a cluster sees it: a submitted job, and memory that does not grow with data."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.manifest import read_manifest
from pipeline.config_reader import to_yaml
from tests.support.raw_data import prepare_config, write_raw
from tests.support.ray_cluster import dashboard_lacks, free_port, head

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
NEEDS_DASHBOARD = pytest.mark.skipif(
    bool(dashboard_lacks()),
    reason="Ray's job server needs the extra 'cluster' (ray[default])",
)


@pytest.fixture(scope="module")
def dashboard() -> int:
    return free_port()


@pytest.fixture(scope="module")
def cluster(dashboard: int) -> Iterator[str]:
    with head(cpus=2, dashboard_port=dashboard) as address:
        yield address


def recipe(folder: Path, images: int, shard_size: int) -> str:
    write_raw(folder / "raw", images=images)
    path = folder / "prepare.yaml"
    config = prepare_config(folder / "raw", folder / "out", shard_size=shard_size, workers=None)
    path.write_text(to_yaml(config))
    return f"--config={path}"


@NEEDS_DASHBOARD
@pytest.mark.usefixtures("cluster")
def test_a_submitted_job_runs_on_the_cluster(dashboard: int, tmp_path: Path) -> None:
    code = tmp_path / "code"
    for package in ("data_prep", "jobs", "model", "pipeline"):
        shutil.copytree(
            ROOT / package,
            code / package,
            ignore=shutil.ignore_patterns("__pycache__", "assets", "templates"),
        )
    command = [
        *(str(Path(sys.executable).parent / "ray"), "job", "submit"),
        *(f"--address=http://127.0.0.1:{dashboard}", f"--working-dir={code}", "--"),
        *(sys.executable, "-m", "jobs.cli", "prepare", recipe(tmp_path, 6, 5)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 shards made, 0 kept" in done.stdout
    assert read_manifest(tmp_path / "out" / "mix").counts == {
        "in": 30,
        "out": 30,
        "quarantined": 0,
    }
    failed = subprocess.run(
        [*command, "--datasets.mix.sources.0.images=/nowhere"],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert failed.returncode != 0
    assert "train: images: /nowhere: no such folder of images" in failed.stdout


def peaks(folder: Path, images: int, cluster: str) -> tuple[int, int]:
    """Most megabytes of the driver and of a worker while so many images are prepared."""
    folder.mkdir()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "jobs.prepare", recipe(folder, images, 100)),
            f"--address={cluster}",
        ],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"peak memory: (\d+) MB in this process, (\d+) MB in a worker", done.stdout)
    assert found is not None, done.stdout
    return int(found[1]), int(found[2])


def test_ten_times_the_data_need_no_more_memory(cluster: str, tmp_path: Path) -> None:
    few = peaks(tmp_path / "few", 150, cluster)
    many = peaks(tmp_path / "many", 1500, cluster)
    print(f"driver and worker: {few} MB for 750 samples, {many} MB for 7500")
    assert many[0] < few[0] + 30
    assert many[1] < few[1] + 20
