"""The environment check says what it found and what to do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from jobs.doctor import (
    check_base,
    check_disk,
    check_libraries,
    check_shared_memory,
    check_writing,
    examine,
    main,
)
from pipeline.errors import ConfigError
from tests.support.small_prompt import small_base


def test_a_healthy_machine_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_base(tmp_path / "base")
    arguments = ["--base", str(tmp_path / "base"), "--output-dir", str(tmp_path / "runs")]
    assert main(["--json", *arguments]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert checks["base"]["found"].startswith("ofa-small: ")
    assert checks["libraries"]["status"] == "ok"
    assert not (tmp_path / "runs").exists()


def test_the_table_shows_every_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--output-dir", str(tmp_path)])
    printed = capsys.readouterr().out
    for check in examine("ofa-micro", tmp_path):
        assert check.name in printed


def test_a_missing_base_fails_with_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check = check_base(str(tmp_path / "nowhere"))
    assert check.status == "failed"
    assert "nowhere" in check.found
    assert check.advice
    assert main(["--base", str(tmp_path / "nowhere"), "--output-dir", str(tmp_path)]) == 1


def test_libraries_are_compared_with_the_declared_ranges() -> None:
    check = check_libraries()
    assert check.status == "ok", check.found
    assert "torch" in check.found


def test_buffers_of_killed_runs_are_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "deepspeed_allreduce_buffer_0").write_bytes(bytes(1024))
    check = check_shared_memory(tmp_path)
    assert check.status == "warning"
    assert "1 DeepSpeed buffers" in check.found
    assert "deepspeed_allreduce_buffer" in check.advice
    assert check_shared_memory(tmp_path / "missing").status == "failed"


def test_disk_and_writing_use_the_nearest_existing_folder(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    assert check_disk(folder).found.endswith(f"for {folder}")
    assert check_writing(folder).status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_fails() -> None:
    check = check_writing(Path("/proc") / str(os.getpid()))
    assert check.status == "failed"
    assert check.advice


def test_checks_can_be_left_out_by_name(tmp_path: Path) -> None:
    names = [check.name for check in examine("none", tmp_path, skip=["base", "GPUs"])]
    assert "memory" in names
    assert not {"base", "GPUs"} & set(names)
    with pytest.raises(ConfigError, match="no such check; checks: python, libraries"):
        examine("none", tmp_path, skip=["gpu"])
