"""torchrun on one node of a Slurm job: `python -m jobs.launch.torchrun_node`, started by srun.

torchrun takes no USR1 and turns every status of its ranks into 1. So this process stands before
it: it hands requests to stop to the ranks themselves, and says 75 where the run left word that it
saved. A rank that fails after it was asked to stop counts as stopped: started again, it fails
unasked.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence

from jobs.cli import run_stage
from jobs.train import Forwarding
from pipeline.errors import EXIT_INTERRUPTED
from pipeline.training.signals import follow_parent


def main(argv: Sequence[str]) -> int:
    """Starts the ranks of this node and waits for them; their status, 75 when they saved."""
    parser = argparse.ArgumentParser(prog="jobs.launch.torchrun_node", description=__doc__)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--ranks-per-node", type=int, required=True)
    parser.add_argument("--config", required=True)
    arguments, rest = parser.parse_known_args(argv)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", f"--nnodes={arguments.nodes}"),
        f"--node-rank={os.environ['SLURM_NODEID']}",
        f"--nproc-per-node={arguments.ranks_per_node}",
        f"--master-addr={os.environ['MASTER_ADDR']}",
        f"--master-port={os.environ['MASTER_PORT']}",
        *("-m", "jobs.train", f"--config={arguments.config}", *rest),
    ]
    with Forwarding() as forwarding:
        # A session of its own: Slurm signals all processes of a task's group.
        launcher = subprocess.Popen(command, start_new_session=True, preexec_fn=follow_parent)
        status = forwarding.wait(launcher)
    if status == 0 or not _interrupted(arguments.config, asked=forwarding.asked is not None):
        return status if status >= 0 else 128 - status
    return EXIT_INTERRUPTED


def _interrupted(config: str, *, asked: bool) -> bool:
    from pipeline.config import RunConfig, load
    from pipeline.training.run_folder import INTERRUPTED, run_folder

    # On the node that was asked, or on another one: the ranks agree, and the first leaves word.
    return asked or (run_folder(load(RunConfig, [config])) / INTERRUPTED).is_file()


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
