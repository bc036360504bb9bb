"""The whole state of an engine fits every other engine and stage, to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.training.world import meeting_place
from tests.support.training_run import ROOT

pytestmark = pytest.mark.distributed


def test_a_state_goes_through_all_engines_bit_by_bit(base: Path) -> None:
    with meeting_place() as place:
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.support.state_exchange", str(base)],
                cwd=ROOT,
                env={
                    **os.environ,
                    **place,
                    **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
                    **{"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
                    "PYTHONPATH": str(ROOT),
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            said = [process.communicate(timeout=200)[0] for process in ranks]
        finally:
            for process in ranks:
                process.kill()
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(said)
    for rank, words in enumerate(said):
        assert f"deepspeed 2 rank {rank}: " in words
