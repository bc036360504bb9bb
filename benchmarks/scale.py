"""Training on many GPUs, simulated: throughput, efficiency, and where the time goes.

    python benchmarks/scale.py --gpus 1 8 64 512 --json scale.json --pictures pictures
    python benchmarks/scale.py --arms prefix --set utilisation=0.5 mtbf_gpu_hours=500

Nothing here was measured on an accelerator. What is assumed stands in
`benchmarks/scaling/assumptions.py`, each number with its source, and `--set` changes it; the same
assumptions and seed give the same numbers. `docs/design/scale.md` reads the result.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

# Started by its path, a script sees its own folder only.
sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from benchmarks.scaling.assumptions import Assumptions
from benchmarks.scaling.pictures import draw
from benchmarks.scaling.simulation import COMPUTE, KINDS, Outcome, simulate
from benchmarks.scaling.sizes import ModelSize, model_size

ARMS: dict[str, tuple[str, ...]] = {
    "prefix": (),
    "prefix, a batch that grows": ("global_batch=0",),
    "prefix, sharded base": ("zero_stage=3",),
    "prefix, store of 1 GB/s": ("store_gb_per_s=1",),
    "prefix, preemptible": ("mtbf_gpu_hours=24",),
    "finetune": ("method=finetune",),
}
"""What each changes of the assumptions."""
_LEAST_SHARE = 0.001
_LARGEST_LOSSES = 3


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate and print."""
    options = _options(argv)
    try:
        assumed = {arm: Assumptions().changed([*ARMS[arm], *options.set]) for arm in options.arms}
        sizes = {arm: model_size(each) for arm, each in assumed.items()}
        outcomes = {
            arm: [simulate(each, gpus, sizes[arm]) for gpus in options.gpus]
            for arm, each in assumed.items()
        }
    except ValueError as error:
        sys.exit(f"error: {error}")
    _print(outcomes, sizes)
    if options.json is not None:
        options.json.write_text(_as_json(assumed, sizes, outcomes), encoding="utf-8")
    if options.pictures is not None:
        print("written:", *draw(options.pictures, outcomes))


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Training on many GPUs, simulated.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 512], help="how many")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="what runs")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="assumptions to change in every arm, such as utilisation=0.5",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers there")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="also draw them there")
    return parser.parse_args(argv)


def _print(outcomes: dict[str, list[Outcome]], sizes: dict[str, ModelSize]) -> None:
    table = Table(title="Simulated, from assumptions", title_justify="left")
    table.add_column("arm", no_wrap=True)
    headings = ("GPUs", "batch", "gradient MB", "hours", "samples/s", "efficiency", "failures")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("what the rest goes to", no_wrap=True)
    for arm, found in outcomes.items():
        for outcome in found:
            table.add_row(
                arm,
                f"{outcome.gpus}",
                f"{outcome.global_batch}",
                f"{4 * sizes[arm].trained / 1e6:.0f}",
                f"{outcome.wall_s / 3600:.2f}",
                f"{outcome.samples_per_s:.0f}",
                f"{outcome.efficiency:.0%}",
                f"{outcome.failures}",
                _losses(outcome),
            )
    console = Console(width=None if Console().is_terminal else 170)
    console.print(table)


def _losses(outcome: Outcome) -> str:
    """The largest, in words."""
    others = [(outcome.shares[kind], kind) for kind in KINDS if kind != COMPUTE]
    largest = sorted(others, reverse=True)[:_LARGEST_LOSSES]
    return ", ".join(f"{kind} {share:.1%}" for share, kind in largest if share >= _LEAST_SHARE)


def _as_json(
    assumed: dict[str, Assumptions],
    sizes: dict[str, ModelSize],
    outcomes: dict[str, list[Outcome]],
) -> str:
    arms = {
        arm: {
            "assumptions": dataclasses.asdict(assumed[arm]),
            "size": dataclasses.asdict(sizes[arm]),
            "rows": [dataclasses.asdict(outcome) for outcome in found],
        }
        for arm, found in outcomes.items()
    }
    return json.dumps(arms, indent=2) + "\n"


if __name__ == "__main__":
    main()
