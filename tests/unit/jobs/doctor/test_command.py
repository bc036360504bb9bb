"""The command says what it found, what to do about it, and fails only for what is needed."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.doctor import main
from jobs.doctor.plan import Plan
from pipeline.errors import ConfigError
from tests.support.small_prompt import small_base

ROOT = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def test_a_healthy_machine_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_base(tmp_path / "base")
    arguments = ["--base", str(tmp_path / "base"), "--checkpoints", str(tmp_path / "runs")]
    assert main(["--json", *arguments]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert checks["base"]["found"].startswith("ofa-small: ")
    assert checks["libraries"]["status"] == "ok"
    assert checks["all-reduce"]["found"].startswith("2 ranks over gloo: 32 MiB in ")
    assert "object store" not in checks
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_the_table_shows_every_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--output-dir", str(tmp_path), "--skip", "all-reduce"])
    printed = capsys.readouterr().out
    for name in Plan(output_dir=tmp_path).node_steps():
        assert name in printed


def test_a_dry_run_only_names_the_checks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [
        "--dry-run",
        "--store=s3://nowhere/x",
        "--checkpoints",
        str(tmp_path / "no" / "such"),
    ]
    assert main(options) == 0
    printed = capsys.readouterr().out
    assert "object store" in printed
    assert "all-reduce" in printed
    assert "between the ranks" not in printed
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "h"}.items():
        monkeypatch.setenv(name, value)
    assert main([*options, "--skip=clocks"]) == 0
    assert "checks between the ranks: ranks, all-reduce\n" in capsys.readouterr().out


def test_a_check_that_fails_makes_the_command_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--base", str(tmp_path / "nowhere"), "--output-dir", str(tmp_path)]
    assert main([*arguments, "--skip=all-reduce", "--json"]) == 1
    failed = [row for row in json.loads(capsys.readouterr().out) if row["status"] == "failed"]
    assert [row["name"] for row in failed] == ["base"]
    assert "nowhere" in failed[0]["found"]
    assert failed[0]["advice"]
    assert main([*arguments, "--skip=all-reduce", "--skip=base"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": ["gpu"]}, "--skip=gpu: no such check; checks: python, libraries"),
        ({"gpus": -1}, "--gpus=-1: expected 0 or more"),
        ({"store": "/data"}, "--store=/data: a folder; give an object store"),
        ({"store": "ftp://host/data"}, "--store: ftp://host/data: ftp:// cannot be read"),
        ({"constraints": Path("/nowhere")}, "--constraints=/nowhere: No such file"),
    ],
)
def test_senseless_options_are_refused_before_any_check(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Plan(**options)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)


def test_a_full_disk_fails_with_advice_and_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    found = subprocess.run(
        [
            *(sys.executable, "-m", "jobs.doctor", "--json", f"--checkpoints={tmp_path}"),
            *("--skip=all-reduce", "--skip=base"),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=fill,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 1, found.stderr
    checks = {row["name"]: row for row in json.loads(found.stdout)}
    for name in ("checkpoints", "disk speed"):
        assert checks[name]["status"] == "failed"
        assert "File too large" in checks[name]["found"]
        assert "--output-dir" in checks[name]["advice"]
    assert list(tmp_path.iterdir()) == []
