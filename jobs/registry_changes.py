"""The commands of `prefixworks registry` that change something in the store.

Each has a plan that `--dry-run` prints and that is carried out otherwise.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from jobs.registry_output import open_registry, plain, say, shown_uri, title
from pipeline.errors import ConfigError, RegistryError

if TYPE_CHECKING:
    from pipeline.registry.promotion import Move
    from pipeline.registry.reference import RegisteredPrompt
    from pipeline.registry.store import PromptRegistry


def register(arguments: argparse.Namespace) -> None:
    """Registers a run or an artifact, and moves the aliases that were named."""
    from pipeline.registry.export import locate_source, register_source
    from pipeline.registry.reference import CHAMPION

    source = locate_source(arguments.source, arguments.uri)
    if arguments.dry_run:
        made = f", made from {source.run} first" if source.run else ""
        values = {
            "would_register": str(source.artifact),
            "from_run": str(source.run) if source.run else None,
            "store": shown_uri(source.location.uri),
            "aliases": arguments.alias,
        }
        say(
            arguments,
            values,
            f"would register {source.artifact}{made} in {shown_uri(source.location.uri)}",
        )
        return
    # The champion goes through the gate, whichever command makes it one.
    plain_aliases = [alias for alias in arguments.alias if alias != CHAMPION]
    prompt = register_source(
        arguments.source, name=arguments.name, aliases=plain_aliases, uri=arguments.uri
    )
    if CHAMPION in arguments.alias:
        prompt = _crown(open_registry(source.location.uri), prompt, arguments)
    say(arguments, plain(prompt), f"registered is {title(prompt)}  {prompt.uri}")


def promote(arguments: argparse.Namespace) -> None:
    """Moves an alias to a version, through the gate where it is the champion."""
    registry = open_registry(arguments.uri)
    move = _plan(registry, arguments.reference, arguments.alias, arguments)
    _carry_out(registry, move, arguments)


def rollback(arguments: argparse.Namespace) -> None:
    """Moves an alias back to the version before."""
    from pipeline.registry.promotion import plan_rollback

    registry = open_registry(arguments.uri)
    _carry_out(registry, plan_rollback(registry, arguments.name, arguments.alias), arguments)


def annotate(arguments: argparse.Namespace) -> None:
    """Adds tags and a note to a version."""
    from pipeline.registry.notes import annotate_version, check_notes

    tags = dict(_pair(text) for text in arguments.tag)
    if not tags and not arguments.untag and arguments.note is None:
        raise ConfigError("annotate: name something to add: --tag NAME=VALUE, --untag or --note")
    registry = open_registry(arguments.uri)
    prompt = registry.get(arguments.reference)
    if arguments.dry_run:
        check_notes(prompt, tags, arguments.untag, arguments.note)
        values = {
            "would_annotate": prompt.title,
            "tags": tags,
            "removed": arguments.untag,
            "note": arguments.note,
        }
        say(arguments, values, f"would annotate {title(prompt)}")
        return
    prompt = annotate_version(
        registry, prompt.title, tags=tags, removed=arguments.untag, note=arguments.note
    )
    say(arguments, plain(prompt), f"annotated {title(prompt)}")


def delete(arguments: argparse.Namespace) -> None:
    """Deletes a version after asking."""
    from pipeline.registry.promotion import check_deletable, delete_version

    registry = open_registry(arguments.uri)
    prompt = registry.get(arguments.reference)
    check_deletable(prompt, force=arguments.force)
    if arguments.dry_run:
        say(arguments, {"would_delete": prompt.title}, f"would delete {title(prompt)}")
        return
    if not arguments.yes:
        _confirm(prompt)
    delete_version(registry, prompt.title, force=arguments.force)
    kept = f"; its files and run {prompt.run_id} stay in the store"
    say(arguments, {"deleted": prompt.title}, f"deleted {title(prompt)}{kept}")


def _plan(
    registry: PromptRegistry, reference: str, alias: str, arguments: argparse.Namespace
) -> Move:
    from pipeline.registry.promotion import plan_promotion

    return plan_promotion(
        registry,
        reference,
        alias=alias,
        metric=arguments.metric,
        dataset=arguments.dataset,
        force=arguments.force,
    )


def _crown(
    registry: PromptRegistry, prompt: RegisteredPrompt, arguments: argparse.Namespace
) -> RegisteredPrompt:
    from pipeline.registry.promotion import carry_out
    from pipeline.registry.reference import CHAMPION

    try:
        return carry_out(registry, _plan(registry, prompt.title, CHAMPION, arguments))
    except RegistryError as error:
        raise RegistryError(f"registered {prompt.title}, but {error}") from error


def _carry_out(registry: PromptRegistry, move: Move, arguments: argparse.Namespace) -> None:
    from pipeline.registry.promotion import carry_out

    place = f"{move.to.name}@{move.alias}"
    former = f"version {move.former.version}" if move.former else "none"
    values: dict[str, Any] = {
        "alias": move.alias,
        "version": move.to.version,
        "former": move.former.version if move.former else None,
        "reason": move.reason,
    }
    if arguments.dry_run:
        text = f"{place} would be version {move.to.version} instead of {former}: {move.reason}"
        say(arguments, {"would_move": values}, text)
        return
    if not move.changes:
        say(arguments, {**plain(move.to), "moved": None}, f"{place} is {former} already")
        return
    prompt = carry_out(registry, move)
    text = f"{place} is now version {prompt.version}, before: {former} ({move.reason})"
    say(arguments, {**plain(prompt), "moved": values}, text)


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise ConfigError(f"--tag {text}: write NAME=VALUE")
    return name.strip(), value.strip()


def _confirm(prompt: RegisteredPrompt) -> None:
    if not sys.stdin.isatty():
        raise RegistryError(f"{prompt.title} was not deleted: nobody to ask here; add --yes")
    print(f"Delete {title(prompt)}? Type {prompt.title} to do it: ", end="", file=sys.stderr)
    if input().strip() != prompt.title:
        raise RegistryError(f"{prompt.title} was not deleted")
