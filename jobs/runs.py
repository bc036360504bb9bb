"""`prefixworks runs`: what runs have told MLflow, and delivery of what it missed.

prefixworks runs list
prefixworks runs show runs/grounding
prefixworks runs sync
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from jobs.cli import run_stage
from pipeline.errors import RegistryError
from pipeline.tracking.config import DEFAULT_OUTPUT_DIR
from pipeline.tracking.secrets import redact

if TYPE_CHECKING:
    from pipeline.tracking.sync import RunRecord

_EPILOG = """examples:
  prefixworks runs list
  prefixworks runs show runs/grounding
  prefixworks runs sync                       # all runs below runs/
  prefixworks runs sync runs/grounding --dry-run
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of `prefixworks runs`."""
    parser = argparse.ArgumentParser(
        prog="prefixworks runs",
        description="List runs, and tell MLflow what it missed while it was down.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--output-dir",
        type=Path,
        default=Path(DEFAULT_OUTPUT_DIR),
        help="folder of the runs, where none is named (default %(default)s)",
    )
    shared.add_argument("--json", action="store_true", help="print JSON")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, help_text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help_text, description=help_text, parents=[shared])

    add("list", "List the runs that are tracked, and what MLflow still has to hear.")
    show = add("show", "Show one run: where it is recorded, and what is not delivered.")
    show.add_argument("run", type=Path, help="run folder")
    sync = add("sync", "Deliver what runs recorded while MLflow was not reached.")
    sync.add_argument("run", type=Path, nargs="*", help="run folders (default: all)")
    sync.add_argument("--uri", help="the store's address, where it moved or has a password")
    sync.add_argument("--dry-run", action="store_true", help="say what would be delivered")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit status; 1 when a run could not be delivered."""
    arguments = build_parser().parse_args(argv)
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "list": _list,
        "show": _show,
        "sync": _sync,
    }
    return commands[arguments.command](arguments)


def _list(arguments: argparse.Namespace) -> int:
    records = _records(arguments, [])
    if arguments.json:
        print(json.dumps([_plain(record) for record in records], indent=2))
        return 0
    table = _table("RUN", "STATUS", "STEP", "TO DELIVER", "REFUSED", "EXPERIMENT", "MLFLOW RUN")
    for record in records:
        table.add_row(
            str(record.folder),
            record.status,
            "-" if record.step is None else str(record.step),
            str(record.waiting),
            str(record.refused),
            record.experiment,
            record.run_id or "-",
        )
    _print(table, records, arguments)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from pipeline.tracking.sync import look_at

    record = look_at(arguments.run)
    if arguments.json:
        print(json.dumps(_plain(record), indent=2))
        return 0
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _plain(record).items():
        if isinstance(value, dict):
            value = ", ".join(f"{count} {kind}" for kind, count in value.items()) or "none"
        table.add_row(name.replace("_", " "), "-" if value is None else str(value))
    _console().print(table)
    return 0


def _sync(arguments: argparse.Namespace) -> int:
    """Goes through all runs, whatever happens to one of them."""
    from pipeline.tracking.sync import look_at, sync_run

    rows: list[dict[str, Any]] = []
    records = _records(arguments, arguments.run)
    for record in records:
        row: dict[str, Any] = {"run": str(record.folder), "waiting": record.waiting}
        if not arguments.dry_run:
            try:
                row["delivered"] = sync_run(record.folder, arguments.uri)
            except RegistryError as error:
                row["error"] = redact(str(error))
            after = look_at(record.folder)
            row |= {"left": after.waiting, "refused": after.refused, "mlflow_run": after.run_id}
        rows.append(row)
    failed = [row for row in rows if "error" in row]
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        _report(rows, records, arguments)
    for row in failed:
        print(f"error: {row['error']}", file=sys.stderr)
    return 1 if failed else 0


def _report(
    rows: Sequence[dict[str, Any]], records: Sequence[RunRecord], arguments: argparse.Namespace
) -> None:
    if arguments.dry_run:
        table = _table("RUN", "WOULD DELIVER")
        for row in rows:
            table.add_row(row["run"], str(row["waiting"]))
    else:
        table = _table("RUN", "DELIVERED", "LEFT", "REFUSED", "MLFLOW RUN")
        for row in rows:
            cells = (row.get("delivered", 0), row["left"], row["refused"], row["mlflow_run"] or "-")
            table.add_row(row["run"], *(str(cell) for cell in cells))
    _print(table, records, arguments)


def _records(arguments: argparse.Namespace, folders: Sequence[Path]) -> list[RunRecord]:
    # MLflow imports slowly: not for --help.
    from pipeline.tracking.sync import find_run_folders, look_at

    return [look_at(folder) for folder in folders or find_run_folders(arguments.output_dir)]


def _plain(record: RunRecord) -> dict[str, Any]:
    return {**dataclasses.asdict(record), "folder": str(record.folder), "waiting": record.waiting}


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(table: Table, records: Sequence[RunRecord], arguments: argparse.Namespace) -> None:
    if records:
        _console().print(table)
    else:
        print(f"no tracked runs in {arguments.output_dir}")


def _console() -> Console:
    # A file or a pipe gets whole lines.
    return Console(width=None if Console().is_terminal else 200, highlight=False)


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
