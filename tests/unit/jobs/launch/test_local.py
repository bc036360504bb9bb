"""Jobs of this machine from submission to their end, with a program in place of Python."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.cli import run_stage
from jobs.launch.command import main
from tests.support.fake_slurm import write_program
from tests.support.launched_job import recipe

# Takes the place of the interpreter: the check of the packages passes, the stage does as told.
_STAGE = """#!/bin/bash
case "$*" in *jobs.launch.packages*) exit 0 ;; esac
echo "runs: $*"
{body}
"""


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Launches, in a folder of its own, a stage that runs some shell."""
    recipe(tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(body: str, *words: str) -> int:
        python = write_program(tmp_path / "python", _STAGE.format(body=body))
        job = ["--name=job", "--recipe=recipe.yaml", f"--python={python}"]
        return run_stage(main, ["train", *job, *words])

    return run


def job_name() -> str:
    [folder] = Path("launched").glob("job-*")
    return folder.name


def until(done: Callable[[], Any]) -> None:
    limit = time.monotonic() + 60
    while not done():
        assert time.monotonic() < limit, "nothing happened for a minute"
        time.sleep(0.02)


def act(*words: str) -> int:
    return run_stage(main, words)


def test_nothing_is_written_unless_it_is_submitted(
    launch: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("exit 0", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "#!/bin/bash" in printed
    assert "nothing was sent" in printed
    assert printed.splitlines()[-1].startswith("bash ")
    assert launch("exit 0") == 0
    assert not Path("launched").exists()


@pytest.mark.parametrize(("status", "word"), [(0, "finished"), (3, "failed"), (75, "interrupted")])
def test_waiting_takes_the_status_of_the_run(
    status: int, word: str, launch: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(f"exit {status}", "--submit", "--wait") == status
    assert f": {word}" in capsys.readouterr().out
    assert act("logs", job_name()) == 0
    assert "runs: -m jobs.train --config=" in capsys.readouterr().out


def test_a_job_is_submitted_once(
    launch: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("exit 3", "--submit", "--wait") == 3
    assert launch("exit 3", "--submit") == 2
    assert "was submitted before" in capsys.readouterr().err


def test_a_cancelled_job_is_asked_to_save_and_can_go_on(
    launch: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    body = "trap 'echo saves; exit 75' TERM\ntouch up\nwhile :; do sleep 0.02; done"
    assert launch(body, "--submit") == 0
    until(Path("up").exists)
    assert act("status", job_name()) == 0
    assert ": running, process" in capsys.readouterr().out
    assert act("resume", job_name()) == 2
    assert "is running; there is nothing to resume" in capsys.readouterr().err
    assert act("cancel", job_name()) == 0
    until(Path("launched", job_name(), "exit_status").exists)
    until(lambda: act("status", job_name()) == 0 and ": cancelled" in capsys.readouterr().out)
    assert "saves" in Path("launched", job_name(), "logs", "job.log").read_text()
    # Frozen is what the stage is told, not the interpreter.
    write_program(Path("python"), _STAGE.format(body="exit 0"))
    assert act("resume", job_name()) == 0
    until(lambda: act("status", job_name()) == 0 and ": finished" in capsys.readouterr().out)
    assert act("resume", job_name()) == 2
    assert "is finished" in capsys.readouterr().err


def test_a_killed_script_is_not_taken_for_an_end(
    launch: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    body = 'echo $$ >"up.$$"\nmv "up.$$" up\nexec sleep 60'
    assert launch(body, "--submit") == 0
    until(Path("up").exists)
    stage = psutil.Process(int(Path("up").read_text()))
    limiter = stage.parent()
    assert limiter is not None
    script = limiter.parent()
    assert script is not None
    script.kill()
    until(lambda: act("status", job_name()) == 0 and ": lost" in capsys.readouterr().out)
    stage.kill()


def test_what_is_no_job_is_named(
    launch: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("exit 0", "--submit", "--wait") == 0
    capsys.readouterr()
    assert act("status", "jbo") == 2
    assert f"no such job in launched; known there: {job_name()}" in capsys.readouterr().err
    Path("launched", job_name(), "submission.json").write_text("[]")
    assert act("status", job_name()) == 1
    assert "submission.json cannot be read" in capsys.readouterr().err


def test_the_switches_are_checked(
    launch: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("exit 0", "--submit", "--dry-run") == 2
    assert launch("exit 0", "--wait") == 2
    assert act("logs", "job", "--lines=0") == 2
    assert capsys.readouterr().err.count("error: --") == 3


def test_a_full_disk_leaves_no_half_of_a_job(
    launch: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        assert launch("exit 0", "--submit") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot be written: File too large" in capsys.readouterr().err
    assert list(Path("launched").iterdir()) == []
