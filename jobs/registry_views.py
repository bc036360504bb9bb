"""The commands of `prefixworks registry` that look: list, show, compare, history."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from jobs.registry_output import open_registry, plain, say, table, title
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.registry.reference import RegisteredPrompt

_WIDEST_CELL = 60


def list_versions(arguments: argparse.Namespace) -> None:
    """Prints all versions, or those of one prompt."""
    prompts = open_registry(arguments.uri).versions(arguments.name)
    rows: list[tuple[str, ...]] = [("NAME", "VERSION", "ALIASES", "TASK", "BASE", "METRIC")]
    rows += [_row(prompt) for prompt in prompts]
    say(arguments, [plain(prompt) for prompt in prompts], table(rows))


def show(arguments: argparse.Namespace) -> None:
    """Prints one version with its tags and its card."""
    prompt = open_registry(arguments.uri).get(arguments.reference)
    tags = "\n".join(f"  {name} = {value}" for name, value in prompt.tags.items())
    run = f"  run {prompt.run_id}\n" if prompt.run_id else ""
    say(arguments, plain(prompt), f"{title(prompt)}\n{run}{tags}\n\n{prompt.description}")


def compare_versions(arguments: argparse.Namespace) -> None:
    """Prints scores, differing facts and differing settings side by side."""
    from pipeline.registry.comparison import compare

    names = arguments.references
    if len(names) < 2:
        raise ConfigError(f"compare {names[0]}: name at least two versions")
    registry = open_registry(arguments.uri)
    found = compare([registry.record(name) for name in names])
    rows = [("", *names)]
    rows += [("data", *(", ".join(data) or "unknown" for data in found.measured_on))]
    rows += [
        (name, *("-" if value is None else f"{value:.4f}" for value in values))
        for name, values in found.metrics.items()
    ]
    for values_of in (found.facts, found.settings):
        rows += [(name, *(value or "-" for value in values)) for name, values in values_of.items()]
    warning = "" if found.comparable else "\nthe scores were not measured on the same data"
    values = {**dataclasses.asdict(found), "comparable": found.comparable}
    say(arguments, values, table([[_short(cell) for cell in row] for row in rows]) + warning)


def show_history(arguments: argparse.Namespace) -> None:
    """Prints the changes of a prompt's aliases."""
    from pipeline.registry.promotion import history

    events = history(open_registry(arguments.uri), arguments.name)
    rows = [("TIME", "ALIAS", "ACTION", "VERSION", "FORMER", "WHY")]
    for moment, event in events:
        former = "-" if event.former is None else str(event.former)
        why = event.reason
        rows += [(moment, event.alias or "-", event.action, str(event.version), former, why)]
    values = [{"time": moment, **dataclasses.asdict(event)} for moment, event in events]
    say(arguments, values, table(rows))


def _row(prompt: RegisteredPrompt) -> tuple[str, ...]:
    tags = prompt.tags
    score = f"{tags['metric']} {tags['metric_value']}" if "metric" in tags else "-"
    aliases = ",".join(prompt.aliases) or "-"
    cells = (tags.get("task", "-"), tags.get("base", "-"), score)
    return (prompt.name, str(prompt.version), aliases, *cells)


def _short(cell: str) -> str:
    return cell if len(cell) <= _WIDEST_CELL else f"{cell[: _WIDEST_CELL - 1]}…"
