"""Checks of the machine, its folders, its libraries and its GPUs."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from jobs.doctor.base import check_base
from jobs.doctor.check import within
from jobs.doctor.folders import check_checkpoints, check_disk, check_disk_speed
from jobs.doctor.gpus import check_gpus, driver_version
from jobs.doctor.libraries import check_libraries, read_constraints
from jobs.doctor.machine import check_compiler, check_open_files, check_shared_memory
from jobs.doctor.tracking import check_tracking
from pipeline.errors import ConfigError

READ_ONLY = Path("/proc") / str(os.getpid())
"""A folder in which not even root can make files."""


def test_a_missing_base_fails_with_advice(tmp_path: Path) -> None:
    check = check_base(str(tmp_path / "nowhere"))
    assert check.failed
    assert "nowhere" in check.found
    assert check.advice


def test_libraries_are_compared_with_the_declared_ranges_and_the_read_constraints(
    tmp_path: Path,
) -> None:
    check = check_libraries()
    assert check.status == "ok", check.found
    assert "torch" in check.found
    assert check.found.endswith("all as tested")
    other = tmp_path / "constraints.txt"
    other.write_text(f"# tested\n\ntorch==2.6.0 # old\nray=={version('ray')}\n")
    check = check_libraries(other)
    assert check.status == "warning"
    assert check.found == f"torch {version('torch')} (tested: 2.6.0)"


@pytest.mark.parametrize("line", ["torch", "torch>=2", "torch>=2,<3", "<html>", "--index-url x"])
def test_constraints_that_pin_nothing_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "constraints.txt"
    path.write_text(f"ray==2\n{line}\n")
    if line == "torch>=2":
        assert read_constraints(path)["torch"] == "2"
        return
    with pytest.raises(ConfigError, match="line 2: expected name==version"):
        read_constraints(path)


def test_constraints_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "constraints.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="it is no text"):
        read_constraints(path)


def test_buffers_of_killed_runs_are_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "deepspeed_allreduce_buffer_0").write_bytes(bytes(1024))
    check = check_shared_memory(tmp_path)
    assert check.status == "warning"
    assert "1 DeepSpeed buffers" in check.found
    assert "deepspeed_allreduce_buffer" in check.advice
    assert check_shared_memory(tmp_path / "missing").failed


@pytest.fixture
def file_limit() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_few_open_files_are_a_warning_and_very_few_a_failure(file_limit: tuple[int, int]) -> None:
    for soft, status in ((400, "failed"), (1024, "warning"), (4096, "ok")):
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, file_limit[1]))
        check = check_open_files()
        assert check.status == status
        assert check.found.startswith(f"{soft} at once")
        assert bool(check.advice) == (status != "ok")


def test_a_compiler_that_is_not_there_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "ccache-of-nobody g++")
    assert check_compiler().found == "CXX=ccache-of-nobody g++ is not there"
    monkeypatch.delenv("CXX")
    assert check_compiler().status == "warning"


def test_folders_that_do_not_exist_yet_are_judged_by_the_one_above(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    assert check_disk(folder).found.endswith(f"for {folder}")
    assert check_checkpoints(folder).status == "ok"
    speed = check_disk_speed(folder)
    assert speed.status in ("ok", "warning")
    assert f"in {tmp_path})" in speed.found
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_fails() -> None:
    for check in (check_checkpoints(READ_ONLY), check_disk_speed(READ_ONLY)):
        assert check.failed
        assert "--output-dir" in check.advice


@pytest.mark.parametrize("kind", ["file", "dangling", "loop"])
def test_what_is_no_folder_cannot_become_one(tmp_path: Path, kind: str) -> None:
    way = tmp_path / "way"
    if kind == "file":
        way.write_text("x")
    else:
        way.symlink_to(way if kind == "loop" else tmp_path / "nowhere")
    folder = way / "runs"
    for check in (check_disk(folder), check_checkpoints(folder), check_disk_speed(folder)):
        assert check.failed
        assert check.found == f"{folder}: {way} is no folder"
    # Through a link that leads nowhere, folders can be made by their real names.
    assert check_tracking(None, folder).failed == (kind != "dangling")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has GPUs")
def test_a_machine_without_gpus_fails_only_where_they_are_needed() -> None:
    assert check_gpus().status in ("ok", "warning")
    check = check_gpus(wanted=2)
    assert check.failed
    assert "none that torch can use, 2 wanted" in check.found


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56",
            "550.54.15",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build",
            "580.65.06",
        ),
        ("something else", "of unknown version"),
    ],
)
def test_the_driver_tells_its_version(tmp_path: Path, line: str, wanted: str) -> None:
    path = tmp_path / "version"
    path.write_text(f"{line}\nGCC version:  gcc version 12.3.0\n")
    assert driver_version(path) == wanted
    assert driver_version(tmp_path / "missing") is None


def test_work_that_hangs_is_given_up_and_errors_come_through() -> None:
    with pytest.raises(TimeoutError, match="no answer within"):
        within(0.05, lambda: time.sleep(5))
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)
    assert within(5, lambda: "done") == "done"
