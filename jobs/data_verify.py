"""`prefixworks data verify`: is a prepared dataset what its manifest says, to the last byte?"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.verification import Verification, verify_dataset
from jobs.byte_progress import byte_progress
from jobs.cli import EXIT_FAILED, run_stage

_SHOWN = 20
_EPILOG = """\
what is compared:
  manifest      its digest, and whether its counts balance: in = out + quarantined
  shards        size and SHA-256 of every file; files that the manifest does not name
  index         SHA-256; unique uids and positions; each row points at members with the right
                names and sizes; each member has its row
  samples       every record follows the schema and is the one that the index names
  images        SHA-256, format and size by the header; every pixel with --decode
  quarantine    SHA-256, rows by reason

examples:
  prefixworks data verify data/prepared/train data/prepared/val
  prefixworks data verify data/prepared/train --decode --workers=8
  prefixworks data verify data/prepared/train --json > problems.json

It ends with 0 when everything fits and with 1 when anything does not. A damaged shard is made
again by `prefixworks prepare` with the recipe that made the dataset; the others are kept."""


def build_parser() -> argparse.ArgumentParser:
    """The command line of `prefixworks data verify`."""
    parser = argparse.ArgumentParser(
        prog="prefixworks data verify",
        description="Read prepared datasets again and compare everything with their manifests.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="prepared dataset")
    parser.add_argument(
        "--decode", action="store_true", help="decode every image, instead of its header alone"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes that check shards (default: the CPUs of this machine, %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with all problems kept")
    parser.add_argument(
        "--show", type=int, default=_SHOWN, help="problems shown of a dataset (default %(default)s)"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit status: 1 when anything is wrong."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.workers < 1:
        parser.error(f"--workers must be at least 1, found {arguments.workers}")
    results = []
    for folder in arguments.folders:
        results.append(_verified(folder, arguments))
        if not arguments.json:
            print(_words(results[-1], arguments.show))
    if arguments.json:
        print(json.dumps([_plain(result) for result in results], indent=2))
    return EXIT_FAILED if any(result.problems.total for result in results) else 0


def _verified(folder: Path, arguments: argparse.Namespace) -> Verification:
    with ExitStack() as stack:
        advance = None

        def start(total: int) -> None:
            nonlocal advance
            advance = stack.enter_context(byte_progress(folder.name, total))

        def step(count: int) -> None:
            if advance is not None:
                advance(count)

        return verify_dataset(
            folder,
            decode=arguments.decode,
            workers=arguments.workers,
            on_start=start,
            on_bytes=step,
        )


def _words(result: Verification, show: int) -> str:
    problems = result.problems
    verdict = f"{problems.total} problem{'s' * (problems.total > 1)}" if problems.total else "whole"
    lines = [
        f"{result.folder}: {verdict}; {result.samples} samples and {result.images} images in "
        f"{result.shards} shards, {result.bytes / 1e6:.1f} MB"
    ]
    lines += [f"  {problem}" for problem in problems.kept[: max(0, show)]]
    hidden = problems.total - min(len(problems.kept), max(0, show))
    if hidden:
        lines.append(f"  and {hidden} more; --show=N or --json tells them")
    return "\n".join(lines)


def _plain(result: Verification) -> dict[str, Any]:
    record = asdict(result)
    record["problems"] = {
        "total": result.problems.total,
        "kept": [asdict(problem) for problem in result.problems.kept],
    }
    return record


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
