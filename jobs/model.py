"""`prefixworks model`: look at checkpoints, make bases of them, and verify the machine.

prefixworks model inspect ofa_large.pt
prefixworks model convert OFA-Sys/ofa-large data/bases/ofa_large
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jobs.cli import Command, run_stage, stage_main
from jobs.command_group import group_parser

SUBCOMMANDS: dict[str, Command] = {
    "inspect": Command(
        "jobs.model_inspect",
        "layout, architecture, size, fingerprint and tokenizer of a checkpoint",
        "prefixworks model inspect ofa_large.pt",
    ),
    "convert": Command(
        "jobs.model_convert",
        "make a base folder of a checkpoint of fairseq or Hugging Face",
        "prefixworks model convert OFA-Sys/ofa-large data/bases/ofa_large",
    ),
    "verify": Command(
        "jobs.model_verify",
        "recompute recorded cases: does this device and torch give the reference's numbers?",
        "prefixworks model verify --fixtures=tests/parity/fixtures/ofa_micro",
    ),
}


def build_parser() -> argparse.ArgumentParser:
    """The command line up to the subcommand, which parses the rest."""
    return group_parser(
        "model", "Look at checkpoints, make bases of them, and verify the machine.", SUBCOMMANDS
    )


def main(argv: Sequence[str]) -> int:
    """Runs a subcommand; errors are raised for the `prefixworks` command to print."""
    command: str = build_parser().parse_args(argv[:1]).command
    return stage_main(SUBCOMMANDS[command])(argv[1:])


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
