"""`prefixworks data`: check sources, verify prepared datasets, look into them.

prefixworks data lint --config=prepare.yaml
prefixworks data verify data/prepared/train
prefixworks data inspect data/prepared/train
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jobs.cli import Command, run_stage, stage_main
from jobs.command_group import group_parser

SUBCOMMANDS: dict[str, Command] = {
    "lint": Command(
        "jobs.data_lint",
        "check a recipe's sources in seconds, before a job of hours",
        "prefixworks data lint --config=prepare.yaml",
    ),
    "verify": Command(
        "jobs.data_verify",
        "read a dataset again and compare every byte with its manifest",
        "prefixworks data verify data/prepared/train --decode",
    ),
    "inspect": Command(
        "jobs.data_inspect",
        "statistics, histograms and a sheet of samples of a dataset",
        "prefixworks data inspect data/prepared/train",
    ),
    "replay": Command(
        "jobs.data_replay",
        "try quarantined samples again, once their sources are repaired",
        "prefixworks data replay --config=prepare.yaml",
    ),
}


def build_parser() -> argparse.ArgumentParser:
    """The command line up to the subcommand, which parses the rest."""
    return group_parser(
        "data", "Check sources, verify prepared datasets, look into them.", SUBCOMMANDS
    )


def main(argv: Sequence[str]) -> int:
    """Runs a subcommand; errors are raised for the `prefixworks` command to print."""
    command: str = build_parser().parse_args(argv[:1]).command
    return stage_main(SUBCOMMANDS[command])(argv[1:])


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
