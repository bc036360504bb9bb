"""`prefixworks data lint`: would this recipe's sources survive preparation?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_prep.config import PrepareConfig
from data_prep.linting import LintReport, SourceLint, lint
from jobs.cli import EXIT_FAILED, run_stage
from pipeline.config_reader import load, read_command_line

_EPILOG = """\
what is looked at, for each source:
  files         the annotation files and the folder of images exist and can be read
  annotations   the first ones (--samples) become records; unknown splits are named
  images        theirs exist, decode, and have the size that boxes refer to
  samples       uids are unique, texts and labels are usable
It uses the reader and the checks of preparation, writes nothing, and needs no Ray.

examples:
  prefixworks data lint --config=prepare.yaml
  prefixworks data lint --config=prepare.yaml --samples=2000
  prefixworks data lint --config=prepare.yaml --max_reject_rate=0.05 --json

Settings of the recipe can be changed as in `prefixworks prepare`. It ends with 0 when the job would
run, with 1 when something would fail it, and with 2 when the recipe itself is wrong."""


def build_parser() -> argparse.ArgumentParser:
    """The command line of `prefixworks data lint`, but for the settings of the recipe."""
    parser = argparse.ArgumentParser(
        prog="prefixworks data lint",
        usage="prefixworks data lint --config=RECIPE.yaml [--samples=N] [--json] [--setting=VALUE]",
        description="Check the sources of a recipe in seconds, before a job of hours.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", action="append", metavar="FILE", help="recipe of `prefixworks prepare`"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=200,
        metavar="N",
        help="annotations of a source to look at (default %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit status: 1 when preparation would fail."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.samples < 1:
        parser.error(f"--samples must be at least 1, found {arguments.samples}")
    config = load(PrepareConfig, arguments.config or (), read_command_line(rest).overrides)
    progress = Console(stderr=True)
    with progress.status("reading") as status:
        report = lint(config, arguments.samples, lambda name: status.update(escape(name)))
    if arguments.json:
        print(json.dumps(_plain(report), indent=2))
    else:
        _print(report, config, Console())
    return EXIT_FAILED if report.failed else 0


def _print(report: LintReport, config: PrepareConfig, console: Console) -> None:
    table = Table()
    for title in ("dataset", "source"):
        table.add_column(title, no_wrap=True)
    for title in ("looked at", "rejected", "images", "seconds"):
        table.add_column(title, justify="right", no_wrap=True)
    for source in report.sources:
        share = source.rejected.total() / source.seen if source.seen else 0.0
        table.add_row(
            escape(source.dataset),
            escape(source.name),
            f"{source.seen} (all)" if source.whole and source.seen else str(source.seen),
            f"{source.rejected.total()} ({share:.1%})",
            str(source.images),
            f"{source.seconds:.1f}",
        )
    console.print(table)
    for line in lines(report, config):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def lines(report: LintReport, config: PrepareConfig) -> list[str]:
    """Everything that the table cannot say: rejects with examples, errors, advice."""
    found: list[str] = []
    for source in report.sources:
        where = f"{source.dataset}, {source.name}"
        for reason, count in sorted(source.rejected.items()):
            example = source.examples[reason]
            found.append(f"{where}: {count} {reason}, such as {example.uid} ({example.position}):")
            found.append(f"    {example.detail}")
    errors = [f"{s.dataset}, {s.name}: {error}" for s in report.sources for error in s.errors]
    found += [f"error: {error}" for error in [*errors, *report.errors]]
    found += [f"advice: {s.dataset}, {s.name}: {each}" for s in report.sources for each in s.advice]
    if not report.failed:
        names = ", ".join(config.datasets)
        found.append(f"advice: nothing here would fail {names}; `--dry-run` shows prepare's plan")
    return ["".join(c if c.isprintable() else " " for c in line) for line in found]


def _plain(report: LintReport) -> dict[str, Any]:
    return {
        "failed": report.failed,
        "errors": report.errors,
        "sources": [_plain_source(source) for source in report.sources],
    }


def _plain_source(source: SourceLint) -> dict[str, Any]:
    record = asdict(source)
    record["rejected"], record["tasks"] = dict(source.rejected), dict(source.tasks)
    return record


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
