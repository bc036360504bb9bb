"""Two or more ranks on this machine alone, as `prefixworks train` would start them.

Each of them runs this module and adds up with the others; the first prints what was measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from jobs.doctor.check import Check
from jobs.doctor.network import all_reduce_check
from jobs.doctor.ranks import AllReduce, join_ranks, leave_ranks, measure_all_reduce
from pipeline.training.signals import follow_parent
from pipeline.training.world import meeting_place


def check_local_ranks(limit_s: float = 120.0) -> Check:
    """An all-reduce between processes of this machine: one for each GPU, else two on the CPU.

    Args:
        limit_s: Longest wait for all of it, in seconds.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        gpus = 0
    ranks = max(2, gpus)
    # Two ranks cannot share one GPU.
    environment = {} if gpus > 1 else {"DS_ACCELERATOR": "cpu"}
    try:
        return all_reduce_check(measure_locally(ranks, environment, limit_s))
    except TimeoutError as error:
        found = str(error)
    except RuntimeError as error:
        found = " ".join(str(error).split())[-300:]
    advice = "look at GLOO_SOCKET_IFNAME and at what limits processes and sockets here"
    return Check("all-reduce", "failed", f"{ranks} local ranks: {found}", advice)


def measure_locally(ranks: int, environment: dict[str, str], limit_s: float) -> AllReduce:
    """Starts ranks on this machine and returns what they measured.

    Args:
        ranks: Processes.
        environment: What they get beside this process's own.
        limit_s: Longest wait for all of it, in seconds.

    Raises:
        TimeoutError: they took longer.
        RuntimeError: one failed; with its last words.
    """
    root = str(Path(__file__).parents[2])
    common = {
        **os.environ,
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
    }
    with meeting_place() as place, tempfile.TemporaryFile("w+") as said:
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "jobs.doctor.local_ranks"],
                env=common | place | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                preexec_fn=follow_parent,
            )
            for rank in range(ranks)
        ]
        try:
            output = [process.communicate(timeout=limit_s)[0] for process in processes]
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"not done within {limit_s:.0f} s") from error
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if any(process.returncode for process in processes):
            said.seek(0)
            raise RuntimeError(said.read().strip() or "a rank ended without a word")
        return AllReduce(**json.loads(output[0]))


def main() -> None:
    """Takes part as one rank."""
    world = join_ranks()
    measured = measure_all_reduce(world)
    leave_ranks()
    if world.leads:
        print(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main()
