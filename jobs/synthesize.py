"""`prefixworks synthesize`: write the embedded world, raw data in real formats, to a folder.

prefixworks synthesize --output data/raw/upstream --domain upstream --scenes.train 30000
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from data_prep.synthetic import plan_world, write_world
from pipeline.config import parse


@dataclass(frozen=True, kw_only=True)
class SceneCounts:
    """Number of scenes in each split; 0 leaves the split out."""

    train: int = 2000
    val: int = 200
    test: int = 200


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig:
    """What to write and where."""

    output: str
    """Folder of the world; it must not exist, or hold the same world already."""
    domain: Literal["upstream", "downstream"]
    """`upstream` for pretraining, `downstream` for tuning: no coloured shape is in both."""
    scenes: SceneCounts = field(default_factory=SceneCounts)
    """Scenes for each split."""
    expressions: Literal["varied", "full"] = "varied"
    """What refers to things: all phrasings of the domain, or `full` descriptions only, which are
    what a base from random weights learns to match first."""
    seed: int = 0
    """Another seed is another world."""
    processes: int | None = None
    """Processes that draw; None takes the usable cores. The files do not depend on it."""


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    config, dry_run = parse(
        SynthesizeConfig,
        argv,
        prog="prefixworks synthesize",
        description="Write the embedded world: pictures of shapes with annotations.",
    )
    asked = {"train": config.scenes.train, "val": config.scenes.val, "test": config.scenes.test}
    plan = plan_world(
        domain=config.domain,
        scenes={split: count for split, count in asked.items() if count},
        seed=config.seed,
        expressions=config.expressions,
    )
    scenes = ", ".join(f"{count} {split}" for split, count in plan.scenes.items())
    what = f"{plan.domain} world of {scenes} scenes, seed {plan.seed}"
    if plan.expressions != "varied":
        what += f", {plan.expressions} expressions"
    if dry_run:
        print(f"would write to {config.output}: {what}")
        return 0
    start = time.monotonic()
    written = write_world(
        config.output,
        domain=plan.domain,
        scenes={str(split): count for split, count in plan.scenes.items()},
        seed=plan.seed,
        expressions=plan.expressions,
        processes=config.processes,
    )
    if written:
        print(f"{config.output}: {what}, in {time.monotonic() - start:.1f} s")
    else:
        print(f"{config.output}: {what}, complete already")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
