"""`prefixworks registry`: register prompts, look at them, promote and fetch them.

prefixworks registry register runs/grounding --alias challenger
prefixworks registry list
prefixworks registry show grounding@champion
prefixworks registry promote grounding/3
prefixworks registry compare grounding@champion grounding/3
prefixworks registry download grounding@champion prompts/grounding
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.cli import run_stage
from pipeline.errors import RegistryError
from pipeline.tracking.config import DEFAULT_OUTPUT_DIR, TrackingConfig, resolve_store

if TYPE_CHECKING:
    from pipeline.registry.store import PromptRegistry, RegisteredPrompt


def build_parser() -> argparse.ArgumentParser:
    """The command line of `prefixworks registry`."""
    parser = argparse.ArgumentParser(
        prog="prefixworks registry", description="Register prompts, look at them, promote them."
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--uri", help="MLflow store (else MLFLOW_TRACKING_URI, else runs/mlflow.db)"
    )
    shared.add_argument("--json", action="store_true", help="print JSON")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, help_text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help_text, description=help_text, parents=[shared])

    register = add(
        "register", "Register a run's best prompt, or a prompt folder, as a new version."
    )
    register.add_argument("source", type=Path, help="run folder, or folder of a prompt artifact")
    register.add_argument("--name", help="registered name (default: the prompt's own)")
    register.add_argument(
        "--alias", action="append", default=[], help="alias to move to the version"
    )
    listing = add("list", "List the registered versions.")
    listing.add_argument("name", nargs="?", help="only this prompt")
    show = add("show", "Show one version with its tags and its card.")
    show.add_argument("reference", help="name@alias or name/version")
    promote = add("promote", "Move an alias to a version.")
    promote.add_argument("reference", help="name@alias or name/version")
    promote.add_argument("--alias", default="champion", help="the alias (default %(default)s)")
    compare = add("compare", "Show the metrics and the differing settings of two versions.")
    compare.add_argument("first", help="name@alias or name/version")
    compare.add_argument("second", help="name@alias or name/version")
    download = add("download", "Copy a version's prompt artifact into a folder.")
    download.add_argument("reference", help="name@alias or name/version")
    download.add_argument("folder", type=Path, help="folder to make")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command; errors are raised for the `prefixworks` command to print."""
    arguments = build_parser().parse_args(argv)
    commands: dict[str, Callable[[argparse.Namespace], None]] = {
        "register": _register,
        "list": _list,
        "show": _show,
        "promote": _promote,
        "compare": _compare,
        "download": _download,
    }
    commands[arguments.command](arguments)
    return 0


def _open(arguments: argparse.Namespace, *, create: bool = False) -> PromptRegistry:
    from pipeline.registry.store import PromptRegistry  # MLflow imports slowly: not for --help

    location = resolve_store(TrackingConfig(uri=arguments.uri), DEFAULT_OUTPUT_DIR)
    return PromptRegistry(location, create=create)


def _register(arguments: argparse.Namespace) -> None:
    from pipeline.registry.export import register_source

    prompt = register_source(
        arguments.source, name=arguments.name, aliases=arguments.alias, uri=arguments.uri
    )
    _print(prompt, arguments, f"registered {_title(prompt)}  {prompt.uri}")


def _list(arguments: argparse.Namespace) -> None:
    prompts = _open(arguments).versions(arguments.name)
    if arguments.json:
        print(json.dumps([_plain(prompt) for prompt in prompts], indent=2))
        return
    rows: list[tuple[str, ...]] = [("NAME", "VERSION", "ALIASES", "TASK", "BASE", "METRIC")]
    rows += [_row(prompt) for prompt in prompts]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _show(arguments: argparse.Namespace) -> None:
    prompt = _open(arguments).get(arguments.reference)
    tags = "\n".join(f"  {name} = {value}" for name, value in prompt.tags.items())
    _print(prompt, arguments, f"{_title(prompt)}\n{tags}\n\n{prompt.description}")


def _promote(arguments: argparse.Namespace) -> None:
    prompt = _open(arguments).set_alias(arguments.reference, arguments.alias)
    _print(prompt, arguments, f"{prompt.name}@{arguments.alias} is now version {prompt.version}")


def _compare(arguments: argparse.Namespace) -> None:
    from pipeline.registry.artifact import read_record
    from pipeline.tracking.provenance import flatten

    registry = _open(arguments)
    names = (arguments.first, arguments.second)
    metas = [read_record(registry.download(name)).meta for name in names]
    settings = [flatten(meta.config) for meta in metas]
    metrics = {
        name: [meta.metrics.get(name) for meta in metas]
        for name in sorted({name for meta in metas for name in meta.metrics})
    }
    differing = {
        name: [each.get(name) for each in settings]
        for name in sorted({name for each in settings for name in each})
        if settings[0].get(name) != settings[1].get(name)
    }
    if arguments.json:
        print(json.dumps({"metrics": metrics, "settings": differing}, indent=2))
        return
    print(f"{'':40}  {names[0]:>24}  {names[1]:>24}")
    for name, scores in metrics.items():
        cells = ["-" if score is None else f"{score:.4f}" for score in scores]
        print(f"{name:40}  {cells[0]:>24}  {cells[1]:>24}")
    for name, values in differing.items():
        print(f"{name:40}  {values[0] or '-'!s:>24}  {values[1] or '-'!s:>24}")


def _download(arguments: argparse.Namespace) -> None:
    if arguments.folder.exists():
        raise RegistryError(f"{arguments.folder} exists already")
    shutil.copytree(_open(arguments).download(arguments.reference), arguments.folder)
    if arguments.json:
        print(json.dumps({"folder": str(arguments.folder)}))
    else:
        print(f"{arguments.reference} is in {arguments.folder}")


def _plain(prompt: RegisteredPrompt) -> dict[str, Any]:
    return {**dataclasses.asdict(prompt), "uri": prompt.uri}


def _print(prompt: RegisteredPrompt, arguments: argparse.Namespace, text: str) -> None:
    print(json.dumps(_plain(prompt), indent=2) if arguments.json else text)


def _title(prompt: RegisteredPrompt) -> str:
    aliases = "".join(f" @{alias}" for alias in prompt.aliases)
    return f"{prompt.name} version {prompt.version}{aliases}"


def _row(prompt: RegisteredPrompt) -> tuple[str, ...]:
    tags = prompt.tags
    score = f"{tags['metric']} {tags['metric_value']}" if "metric" in tags else "-"
    aliases = ",".join(prompt.aliases) or "-"
    cells = (tags.get("task", "-"), tags.get("base", "-"), score)
    return (prompt.name, str(prompt.version), aliases, *cells)


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
