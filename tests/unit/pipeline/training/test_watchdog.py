"""A rank in which nothing goes on ends by itself, whatever holds it up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from pipeline.errors import TrainingError
from pipeline.training.peers import Peers, telling_fates
from pipeline.training.world import LostContact, World
from tests.support.training_run import ROOT

_RANK = """
import ctypes, os, sys, time
from pathlib import Path
from pipeline.training.peers import Peers
from pipeline.training.watchdog import Watchdog

def stuck():
    {stuck}

with Watchdog(
    limit_s=1.0, rank=3, peers=Peers({{}}), run_dir=Path(sys.argv[1]), doing=lambda: "testing"
) as watchdog:
    for step in range(3):
        time.sleep(0.4)
        watchdog.progressed(step + 1)
    stuck()
"""
HOLDS_THE_INTERPRETER = "ctypes.PyDLL(None).sleep(60)"
LETS_GO_OF_IT = "ctypes.CDLL(None).sleep(60)"


def run_stuck(stuck: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _RANK.format(stuck=stuck), str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "in stuck" in done.stderr
    return done.stderr


def test_what_hangs_is_shown(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    said = run_stuck(f"open({str(tmp_path / 'fifo')!r})", tmp_path)
    first = said.splitlines()[0]
    assert first.startswith("error: rank 3 made no progress for 1 s after step 3: it is testing;")
    assert "in stuck" in (tmp_path / "stacks-rank-3.txt").read_text()


def test_what_holds_the_interpreter_is_ended_too(tmp_path: Path) -> None:
    assert "Timeout (0:00:04)!" in run_stuck(HOLDS_THE_INTERPRETER, tmp_path)


def test_a_folder_that_is_gone_does_not_hold_it_up(tmp_path: Path) -> None:
    run_stuck(LETS_GO_OF_IT, tmp_path / "gone")


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def test_what_became_of_other_ranks() -> None:
    killed, stopped, fine, left = sleeper(), sleeper(), sleeper(), sleeper()
    peers = Peers(
        {
            rank: psutil.Process(process.pid)
            for rank, process in enumerate([killed, stopped, fine, left])
        }
    )
    try:
        killed.kill()
        stopped.send_signal(signal.SIGSTOP)
        left.kill()
        left.wait()
        deadline = time.monotonic() + 20
        while len(peers.fates()) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert peers.fates() == [
            f"rank 0 (process {killed.pid}) was killed by SIGKILL",
            f"rank 1 (process {stopped.pid}) is stopped",
            f"rank 3 (process {left.pid}) is gone",
        ]
        world = World(rank=4, size=5, device=torch.device("cpu"))
        with (
            pytest.raises(TrainingError, match=r"rank 4: broke; rank 0 .* was killed by SIGKILL; "),
            telling_fates(world, peers),
        ):
            raise LostContact("rank 4: broke")
    finally:
        for process in (killed, stopped, fine, left):
            process.kill()
            process.wait()
