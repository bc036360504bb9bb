"""Ranks that meet: real processes over gloo, one that never comes, one that dies, odd clocks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.doctor.local_ranks import measure_locally
from jobs.doctor.network import all_reduce_check, clock_check
from jobs.doctor.ranks import AllReduce
from pipeline.training.world import meeting_place
from tests.support.mlflow_server import free_port

ROOT = Path(__file__).parents[4]
SKIPPED = ["base", "disk", "disk speed", "MLflow"]


TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")


def run_ranks(
    place: dict[str, str],
    programs: list[list[str]],
    size: int,
    names: tuple[str, str, str] = TORCH,
    local_rank: str = "0",
) -> list[Any]:
    """Starts ranks as a launcher that sets these variables would, each on a node of its own."""
    common = {
        **{name: value for name, value in os.environ.items() if name not in (*TORCH, *SLURM)},
        **{"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"},
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, *program],
            cwd=ROOT,
            env=common | place | dict(zip(names, (str(rank), str(size), local_rank), strict=True)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, program in enumerate(programs)
    ]
    try:
        said = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(each.returncode, *words) for each, words in zip(started, said, strict=True)]


def doctor(*options: str) -> list[str]:
    return ["-m", "jobs.doctor", "--json", *(f"--skip={name}" for name in SKIPPED), *options]


def test_all_ranks_of_a_job_take_part_and_the_first_tells(tmp_path: Path) -> None:
    good, bad = f"--checkpoints={tmp_path}", "--checkpoints=/proc/self"
    with meeting_place() as place:
        first, second = run_ranks(place, [doctor(good), doctor(bad)], 2)
    rows = json.loads(first[1])
    assert second[1] == ""
    between, mine, other = dict.fromkeys(row["node"] for row in rows)
    assert between == "between the ranks"
    assert mine.endswith("rank 0")
    assert other.endswith("rank 1")
    shared = {row["name"]: row for row in rows if row["node"] == between}
    assert list(shared) == ["ranks", "all-reduce", "clocks"]
    assert shared["ranks"]["found"].startswith("all 2 met in ")
    assert shared["all-reduce"]["found"].startswith("2 ranks over gloo: 32 MiB in ")
    assert shared["clocks"]["found"].endswith("apart on 2 nodes")
    failed = [(row["node"], row["name"]) for row in rows if row["status"] == "failed"]
    # Both ranks end with the status of the whole, so that every launcher sees it.
    assert failed == [(other, "checkpoints")]
    assert (first[0], second[0]) == (1, 1)


def test_a_rank_that_never_comes_or_dies_is_told_by_those_that_are_there() -> None:
    program = (
        "from pathlib import Path\n"
        "from jobs.doctor.job import examine_job\n"
        "from jobs.doctor.plan import Plan\n"
        "from jobs.doctor.report import print_json\n"
        f"raise SystemExit(examine_job(Plan(skip={SKIPPED!r}), print_json, wait_s=20))\n"
    )
    dies = "from jobs.doctor.ranks import join_ranks\nimport os\njoin_ranks()\nos._exit(9)\n"
    missing = program.replace("wait_s=20", "wait_s=2")
    with meeting_place() as place:
        first, second = run_ranks(place, [["-c", program], ["-c", dies]], 2)
    with meeting_place() as place:
        (alone,) = run_ranks(place, [["-c", missing]], 2)
        # Not the first of its node, which tells and fails for it.
        (other,) = run_ranks(place, [["-c", missing]], 2, local_rank="1")
    assert other[:2] == (0, "")
    assert "1 of 2 ranks did not come within 2 s: 1" in other[2]
    assert second[0] == 9
    assert "1 of 2 ranks did not come within 2 s: 1" in alone[1]
    for status, printed, said in (first, alone):
        assert status == 1, said
        rows = {row["name"]: row for row in json.loads(printed)}
        assert rows["ranks"]["status"] == "failed"
        assert "MASTER_ADDR" in rows["ranks"]["advice"]
        assert rows["libraries"]["status"] == "ok"


def test_clocks_are_compared_with_that_of_the_first_rank_under_slurms_variables() -> None:
    program = (
        "import json, time\n"
        "from jobs.doctor.ranks import clock_offsets, join_ranks, leave_ranks\n"
        "world = join_ranks()\n"
        "found = clock_offsets(world, [1], lambda: time.time() + 400 * world.rank)\n"
        "leave_ranks()\n"
        "print(json.dumps(found))\n"
    )
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    said = run_ranks(place, [["-c", program]] * 2, 2, SLURM)
    assert [status for status, _, _ in said] == [0, 0], said
    offsets = json.loads(said[0][1])
    assert offsets == {"1": pytest.approx(400, abs=5)}
    assert json.loads(said[1][1]) == {}


def test_local_ranks_that_fail_say_why() -> None:
    with pytest.raises(RuntimeError, match="no-such-device"):
        measure_locally(2, {"GLOO_SOCKET_IFNAME": "no-such-device"}, limit_s=60)
    with pytest.raises(TimeoutError, match="not done within"):
        measure_locally(2, {}, limit_s=0.1)


@pytest.mark.parametrize(
    ("large_s", "trouble", "status"), [(0.01, "", "ok"), (2.0, "", "warning"), (0.0, "x", "failed")]
)
def test_bandwidths_are_judged(large_s: float, trouble: str, status: str) -> None:
    measured = AllReduce(backend="nccl", ranks=4, large_s=large_s, small_s=1e-4, trouble=trouble)
    assert all_reduce_check(measured).status == status


def test_the_bandwidth_is_that_of_a_link_of_a_ring() -> None:
    measured = AllReduce(backend="gloo", ranks=4, large_s=0.5, small_s=1e-4)
    assert measured.bytes_s == pytest.approx(1.5 * 32 * 2**20 / 0.5)
    assert all_reduce_check(AllReduce(backend="gloo", ranks=1)).status == "ok"


@pytest.mark.parametrize(
    ("offset", "status", "words"),
    [(0.002, "ok", "2.0 ms"), (-5, "warning", "behind"), (900, "failed", "ahead of")],
)
def test_clocks_are_judged(offset: float, status: str, words: str) -> None:
    check = clock_check({"b, rank 8": offset, "c, rank 16": 0.001})
    assert check.status == status
    assert words in check.found
    assert clock_check({}).status == "ok"
