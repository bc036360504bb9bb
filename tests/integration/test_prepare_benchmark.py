"""The preparation benchmark runs and writes rows; what it measures is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.process_tree import run_measured

ROOT = Path(__file__).parents[2]
KEYS = {
    "arm",
    "workers",
    "images",
    "images_per_s",
    "cpu_s_per_1000",
    "peak_mib",
    "start_s",
    "steady_images_per_s",
    "steady_cpu_s_per_1000",
}

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def run(folder: Path, *flags: str) -> tuple[list[dict[str, Any]], subprocess.CompletedProcess[str]]:
    file = folder / "rows.json"
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks" / "prepare.py"), "--images=40"),
            *("--shard-size=10", "--workers", "1", f"--work-dir={folder}", f"--json={file}"),
            *flags,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    return json.loads(file.read_text()) if file.exists() else [], done


def check(rows: list[dict[str, Any]], done: subprocess.CompletedProcess[str]) -> None:
    for row in rows:
        assert set(row) == KEYS
        assert (row["workers"], row["images"]) == (1, 40)
        assert row["arm"] in done.stdout
        assert 0 < row["images_per_s"] < 1000
        assert row["cpu_s_per_1000"] > 1
        assert row["peak_mib"] > 50


def test_ours_and_ray_data_store_every_picture(tmp_path: Path) -> None:
    rows, done = run(tmp_path, "--arms", "prefixworks", "ray-data")
    assert done.returncode == 0, done.stderr
    assert [row["arm"] for row in rows] == ["prefixworks", "ray-data"]
    check(rows, done)
    # Nothing is left but the rows.
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


@pytest.mark.slow
def test_img2dataset_stores_every_picture(tmp_path: Path) -> None:
    rows, done = run(tmp_path, "--arms", "img2dataset")
    if "img2dataset cannot be installed" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    check(rows, done)


def test_a_failing_arm_is_reported_with_its_last_words(tmp_path: Path) -> None:
    program = "import sys; print('no disk'); sys.exit(3)"
    with pytest.raises(RuntimeError, match=r"(?s)ended with status 3.*no disk"):
        run_measured([sys.executable, "-c", program], {}, tmp_path / "log.txt")


def test_the_work_of_grandchildren_is_counted(tmp_path: Path) -> None:
    busy = "import time; t = time.process_time()\nwhile time.process_time() - t < 1: pass"
    # The child ends at once; what it started works on alone.
    program = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {busy!r}])"
    usage = run_measured([sys.executable, "-c", program], {}, tmp_path / "log.txt")
    assert 1 <= usage.cpu_s < 3
