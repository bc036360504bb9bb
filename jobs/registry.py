"""`prefixworks registry`: register prompts, look at them, promote, carry and fetch them.

prefixworks registry register runs/grounding --alias challenger
prefixworks registry list
prefixworks registry show grounding@champion
prefixworks registry compare grounding@champion grounding@challenger
prefixworks registry promote grounding@challenger
prefixworks registry rollback grounding
prefixworks registry export grounding backup/grounding
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs import registry_changes, registry_transfer, registry_views
from jobs.cli import run_stage

REFERENCE = "name@alias or name/version"


class _Commands:
    """The commands of one parser, each with the options that all have."""

    def __init__(self, parser: ArgumentParser) -> None:
        self._parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def view(self, name: str, run: Callable[[Namespace], None], text: str) -> ArgumentParser:
        """A command that looks and changes nothing."""
        parser = self._parsers.add_parser(name, help=text, description=text)
        parser.set_defaults(run=run)
        parser.add_argument(
            "--uri", help="MLflow store (else MLFLOW_TRACKING_URI, else runs/mlflow.db)"
        )
        parser.add_argument("--json", action="store_true", help="print JSON")
        return parser

    def change(self, name: str, run: Callable[[Namespace], None], text: str) -> ArgumentParser:
        """A command that changes something, unless it is only asked what it would do."""
        parser = self.view(name, run, text)
        parser.add_argument("--dry-run", action="store_true", help="say what would change")
        return parser


def build_parser() -> ArgumentParser:
    """The command line of `prefixworks registry`."""
    parser = ArgumentParser(
        prog="prefixworks registry",
        description="Register prompts, look at them, promote, carry and fetch them.",
    )
    commands = _Commands(parser)
    _add_changes(commands)
    _add_views(commands)
    _add_transfers(commands)
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command; errors are raised for the `prefixworks` command to print."""
    arguments = build_parser().parse_args(argv)
    arguments.run(arguments)
    return 0


def _add_changes(commands: _Commands) -> None:
    register = commands.change(
        "register",
        registry_changes.register,
        "Register a run's best prompt, or a prompt folder, as a new version.",
    )
    register.add_argument("source", type=Path, help="run folder, or folder of a prompt artifact")
    register.add_argument("--name", help="registered name (default: the prompt's own)")
    register.add_argument(
        "--alias", action="append", default=[], help="alias to move to the version"
    )
    _add_gate(register)
    promote = commands.change(
        "promote",
        registry_changes.promote,
        "Move an alias to a version; champion only to one that is better than the present one.",
    )
    promote.add_argument("reference", help=REFERENCE)
    promote.add_argument("--alias", default="champion", help="the alias (default %(default)s)")
    _add_gate(promote)
    rollback = commands.change(
        "rollback", registry_changes.rollback, "Move an alias back to the version before."
    )
    rollback.add_argument("name", help="the registered prompt")
    rollback.add_argument("--alias", default="champion", help="the alias (default %(default)s)")
    annotate = commands.change(
        "annotate", registry_changes.annotate, "Add tags and a note to a version."
    )
    annotate.add_argument("reference", help=REFERENCE)
    annotate.add_argument(
        "--tag", action="append", default=[], metavar="NAME=VALUE", help="tag to set"
    )
    annotate.add_argument("--untag", action="append", default=[], metavar="NAME", help="to remove")
    annotate.add_argument("--note", help="text above the card; an empty one removes it")
    delete = commands.change("delete", registry_changes.delete, "Delete a version, after asking.")
    delete.add_argument("reference", help=REFERENCE)
    delete.add_argument("--yes", action="store_true", help="do not ask")
    delete.add_argument("--force", action="store_true", help="also one that has an alias")


def _add_gate(parser: ArgumentParser) -> None:
    parser.add_argument("--metric", help="to compare by (default: the champion's headline metric)")
    parser.add_argument("--dataset", help="name or digest of the data that both were measured on")
    parser.add_argument("--force", action="store_true", help="champion without being better")


def _add_views(commands: _Commands) -> None:
    listing = commands.view("list", registry_views.list_versions, "List the registered versions.")
    listing.add_argument("name", nargs="?", help="only this prompt")
    show = commands.view(
        "show", registry_views.show, "Show one version with its tags and its card."
    )
    show.add_argument("reference", help=REFERENCE)
    compare = commands.view(
        "compare",
        registry_views.compare_versions,
        "Show the scores and the differing settings of versions side by side.",
    )
    compare.add_argument("references", nargs="+", metavar="reference", help=REFERENCE)
    past = commands.view(
        "history", registry_views.show_history, "Show who was champion when, and why."
    )
    past.add_argument("name", help="the registered prompt")


def _add_transfers(commands: _Commands) -> None:
    download = commands.view(
        "download",
        registry_transfer.download,
        "Copy a version's prompt artifact into a folder.",
    )
    download.add_argument("reference", help=REFERENCE)
    download.add_argument("folder", type=Path, help="folder to make")
    export = commands.change(
        "export",
        registry_transfer.export,
        "Write versions into a folder, or copy them into another registry.",
    )
    export.add_argument("what", help="name (all versions), name@alias or name/version")
    export.add_argument("target", help="folder to make, or URI of an MLflow store")
    bring = commands.change(
        "import", registry_transfer.bring, "Register the versions of an exported folder."
    )
    bring.add_argument("folder", type=Path, help="what export wrote")
    bring.add_argument("--name", help="registered name (default: that of the export)")


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
