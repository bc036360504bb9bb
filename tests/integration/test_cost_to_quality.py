"""The study runs its arms, keeps what is finished, and writes what it found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.integration


def study(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    sizes = {"scenes": 12, "steps": 2, "every": 1, "batch": 4, "samples": 4, "parallel": 2}
    return subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks" / "cost_to_quality.py")),
            *(f"--{name}={value}" for name, value in sizes.items()),
            *(f"--work={folder}", f"--json={folder / 'study.json'}", *flags),
        ],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_a_study_that_was_stopped_runs_only_what_is_missing(tmp_path: Path) -> None:
    first = study(tmp_path, "--seeds", "0", "--arms", "plain")
    assert first.returncode == 0, first.stderr
    assert "plain, seed 0: done" in first.stdout
    again = study(tmp_path, "--seeds", "0", "--arms", "plain", "other task's prompt")
    assert again.returncode == 0, again.stderr
    assert "plain, seed 0: done" not in again.stdout
    assert "other task's prompt, seed 0: done" in again.stdout
    found = json.loads((tmp_path / "study.json").read_text())
    assert [row["arm"] for row in found["rows"]] == ["plain", "other task's prompt"]
    for row in found["rows"]:
        assert row["cpu_s_per_step"] > 0
        assert row["trainable"] == 2 * 3 * 2 * 192 * 48
        assert row["final_nll"] > 0
    # The plain recipe reaches 95% of its own score, and its own likelihood.
    assert found["rows"][0]["steps_to_95"] in (1, 2)
    assert found["rows"][0]["steps_to_nll"] in (1, 2)


def test_an_unknown_arm_is_named(tmp_path: Path) -> None:
    done = study(tmp_path, "--arms", "magic")
    assert done.returncode != 0
    assert "no arm 'magic'; there are: plain, " in done.stderr
