"""`prefixworks doctor`: check a machine, or the nodes of a job, and say what to do.

prefixworks doctor
prefixworks doctor --base=bases/ofa_large --checkpoints=/data/runs --store=s3://data/prepared
srun prefixworks doctor --gpus=8

Exits with 1 when something fails that the given use needs; a warning is something that works, but
slowly or not for long.
"""

from __future__ import annotations

import argparse
import socket
from collections.abc import Sequence
from pathlib import Path

from jobs.doctor.job import examine_job
from jobs.doctor.plan import BETWEEN_RANKS, Plan
from jobs.doctor.report import Report, print_json, print_tables
from pipeline.training.world import environment_rank

_EPILOG = """examples:
  prefixworks doctor --checkpoints=/data/runs --store=s3://data/prepared/train
  srun prefixworks doctor --gpus=8
  torchrun --nnodes=2 ... -m jobs.doctor --json

Started by a launcher as one of several ranks, all ranks take part, and rank 0 prints a table of
what lies between them and one of each node. Alone, local processes stand for the ranks. Nothing is
changed: files that are written to measure a disk are removed, object stores and MLflow only read.
"""


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    args = build_parser().parse_args(argv)
    plan = Plan(
        base=args.base,
        output_dir=args.output_dir,
        store=args.store,
        tracking=args.tracking,
        gpus=args.gpus,
        constraints=args.constraints,
        skip=args.skip,
    )
    in_job = environment_rank() is not None
    if args.dry_run:
        print(_outline(plan, in_job))
        return 0
    tell = print_json if args.json else print_tables
    if in_job:
        return 1 if examine_job(plan, tell) else 0
    report = Report(socket.gethostname(), [step() for step in plan.local_steps().values()])
    tell([report])
    return 1 if report.failed else 0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="prefixworks doctor",
        description="Check this machine, or all nodes of a job, and say what to do.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--base", default=Plan.base, help="base to load (default %(default)s)")
    add(
        *("--output-dir", "--checkpoints"),
        type=Path,
        default=Plan.output_dir,
        metavar="DIR",
        help="folder of the runs and their checkpoints (default %(default)s)",
    )
    add("--store", metavar="URI", help="object store to read, such as s3://bucket/prepared/train")
    add("--tracking", metavar="URI", help="MLflow that has to answer (else MLFLOW_TRACKING_URI)")
    add("--gpus", type=int, default=0, metavar="N", help="GPUs that each node has to have")
    add(
        "--constraints",
        type=Path,
        metavar="FILE",
        help="tested versions to compare with (default: the checkout's constraints.txt)",
    )
    add("--skip", action="append", default=[], metavar="CHECK", help="leave a check out, by name")
    add("--json", action="store_true", help="print JSON")
    add("--dry-run", action="store_true", help="print which checks would be made")
    return parser


def _outline(plan: Plan, in_job: bool) -> str:
    if not in_job:
        return f"checks of this machine: {', '.join(plan.local_steps())}"
    between = [name for name in BETWEEN_RANKS if name not in plan.skip]
    return (
        f"checks between the ranks: {', '.join(['ranks', *between])}\n"
        f"checks of each node: {', '.join(plan.node_steps())}"
    )
