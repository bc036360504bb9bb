"""Ranks that train one recipe after another: starting processes costs more than the small runs.

`run_recipes` starts the ranks; each of them runs this module. The ranks stay one process group all
the time, everything else is the training command's own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.training_run import ROOT


def run_recipes(
    recipes: Sequence[Path],
    *,
    ranks: int,
    module: str = "tests.support.rank_group",
    timeout_s: float = 240,
) -> None:
    """Trains the recipes in their order, all on the same ranks.

    Args:
        recipes: What is trained.
        ranks: Processes.
        module: What each of them runs, given the recipes.
        timeout_s: Longest that all may take.

    Raises:
        AssertionError: a rank failed; with what it said.
    """
    from pipeline.training.world import meeting_place

    common = {
        **os.environ,
        **{"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"},
        **{"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"},
    }
    with meeting_place() as place:
        started = [
            subprocess.Popen(
                [sys.executable, "-m", module, *map(str, recipes)],
                cwd=ROOT,
                env=common | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(ranks)
        ]
        try:
            said = [process.communicate(timeout=timeout_s)[0] for process in started]
        finally:
            for process in started:
                process.kill()
    assert [process.returncode for process in started] == [0] * ranks, "\n".join(said)


def main(recipes: Sequence[str]) -> None:
    """Trains each recipe, as one rank."""
    from pipeline.config import RunConfig, load
    from pipeline.training import process_group, trainer

    configs = [load(RunConfig, [Path(recipe)]) for recipe in recipes]
    world = process_group.join_world(configs[0])
    trainer.join_world = lambda config: world
    trainer.leave_world = lambda: None
    for config in configs:
        trainer.train(config)
    process_group.leave_world()


if __name__ == "__main__":
    main(sys.argv[1:])
