"""What runs in a pod: ranks as real processes, their signals, and the status of the pod."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.launch.kubernetes import entry
from pipeline.errors import ConfigError, TrainingError

ROOT = Path(__file__).parents[4]
SAVES = """
import os, signal, sys, time
def save(*_):
    time.sleep(0.3 * int(os.environ["RANK"]))
    open(sys.argv[1] + "/saved-" + os.environ["RANK"], "w").close()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
open(sys.argv[1] + "/ready-" + os.environ["RANK"], "w").close()
if os.environ["RANK"] == os.environ.get("FAILS"):
    sys.exit(int(os.environ["STATUS"]))
time.sleep(60)
"""
DEAF = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.exit(3) if os.environ["RANK"] == "0" else time.sleep(60)
"""


def environments(count: int, **more: str) -> list[dict[str, str]]:
    return entry.rank_environments({**os.environ, **more}, 0, 1, count)


def python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", program, *arguments]


def test_every_rank_of_every_node_has_its_own_number() -> None:
    shared = {"MASTER_ADDR": "first", "MASTER_PORT": "29500", "RANK": "1"}
    ranks = [each for node in range(3) for each in entry.rank_environments(shared, node, 3, 2)]
    assert [each["RANK"] for each in ranks] == ["0", "1", "2", "3", "4", "5"]
    assert [each["LOCAL_RANK"] for each in ranks] == ["0", "1"] * 3
    assert {each["WORLD_SIZE"] for each in ranks} == {"6"}
    assert {each["LOCAL_SIZE"] for each in ranks} == {each["LOCAL_WORLD_SIZE"] for each in ranks}
    assert {each["MASTER_ADDR"] for each in ranks} == {"first"}


def test_ranks_that_end_well_end_the_pod_well(tmp_path: Path) -> None:
    words = ["$(touch owned)", "a b", "'", "\n"]
    write = (
        "import json, os, pathlib, sys;"
        "pathlib.Path(sys.argv[1], os.environ['RANK']).write_text(json.dumps(sys.argv))"
    )
    assert entry.run_ranks(python(write, str(tmp_path), *words), environments(3)) == 0
    for rank in range(3):
        assert json.loads((tmp_path / str(rank)).read_text())[2:] == words
    assert len(list(tmp_path.iterdir())) == 3


def test_a_saved_rank_lets_all_others_save_and_the_pod_ends_with_75(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=_stop_when_ready, args=(tmp_path, 3), daemon=True).start()
    assert entry.run_ranks(python(SAVES, str(tmp_path)), environments(3)) == 75
    assert len(list(tmp_path.glob("saved-*"))) == 3
    # Who runs next in this process has its own handlers again.
    assert signal.getsignal(signal.SIGTERM) == before


def test_one_rank_that_leaves_with_75_takes_the_others_along(tmp_path: Path) -> None:
    ranks = environments(3, FAILS="0", STATUS="75")
    assert entry.run_ranks(python(SAVES, str(tmp_path)), ranks) == 75
    assert not list(tmp_path.glob("saved-0"))


def test_a_failure_is_the_status_of_the_pod_and_ends_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry, "_LAST_WORDS_S", 0.5)
    ranks = environments(3, FAILS="1", STATUS="2")
    assert entry.run_ranks(python(SAVES, str(tmp_path)), ranks) == 2


def test_a_rank_that_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "_LAST_WORDS_S", 0.2)
    monkeypatch.setattr(entry, "_KILL_AFTER_S", 0.2)
    assert entry.run_ranks(python(DEAF), environments(2)) == 3


def test_a_killed_rank_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert entry.run_ranks(python(kill), environments(1)) == 137
    assert "error: rank 0 was killed by SIGKILL" in capfd.readouterr().err


def test_the_whole_entry_runs_a_stage_with_the_words_of_a_file(tmp_path: Path) -> None:
    arguments = tmp_path / "arguments.json"
    arguments.write_text(json.dumps(["evaluate", "--no.such=$(touch owned)\n'"]))
    done = _entry(tmp_path, str(arguments))
    assert done.returncode == 2
    assert "$(touch owned)" not in done.stdout
    assert done.stderr.startswith("error: ")
    assert [each.name for each in tmp_path.iterdir()] == ["arguments.json"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no arguments can be read"),
        ("{", "no arguments can be read"),
        ("[]", "must hold a JSON list of texts"),
        ('["train", 1]', "must hold a JSON list of texts"),
    ],
)
def test_files_that_hold_no_words(content: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "arguments.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=words):
        entry.read_words(path)


@pytest.mark.parametrize("number", ["", "-1", "two", "2"])
def test_a_node_without_a_number_of_its_own_is_refused(
    number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "arguments.json"
    path.write_text('["train"]')
    monkeypatch.setenv("JOB_COMPLETION_INDEX", number)
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        with pytest.raises(ConfigError, match=r"JOB_COMPLETION_INDEX = .*below 2"):
            entry.main([str(path), "--nodes=2", "--ranks-per-node=1"])
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_a_first_pod_that_never_appears() -> None:
    with pytest.raises(TrainingError, match=r"no pod nowhere\.invalid after 0 s"):
        entry.wait_for_host("nowhere.invalid", 0.0)
    with pytest.raises(ConfigError, match="MASTER_ADDR is not set"):
        entry.wait_for_host("", 0.0)
    entry.wait_for_host("127.0.0.1", 0.0)


def test_a_pod_that_waits_for_the_first_one_stops_at_once(tmp_path: Path) -> None:
    path = tmp_path / "arguments.json"
    path.write_text('["train"]')
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.launch.kubernetes.entry", str(path), "--ranks-per-node=1"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JOB_COMPLETION_INDEX": "0",
            "MASTER_ADDR": "nowhere.invalid",
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait_until(lambda: _catches_sigterm(process.pid))
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (75, "error: asked to stop; nothing is lost\n")


def _entry(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.launch.kubernetes.entry", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _stop_when_ready(folder: Path, count: int) -> None:
    _wait_until(lambda: len(list(folder.glob("ready-*"))) == count)
    os.kill(os.getpid(), signal.SIGTERM)


def _catches_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) & 1 << (signal.SIGTERM - 1))


def _wait_until(done: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not done():
        assert time.monotonic() < until
        time.sleep(0.02)
