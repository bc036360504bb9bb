"""The commands of `prefixworks registry` that carry prompts: download, export, import."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.registry_output import open_registry, say, shown_uri, title
from pipeline.errors import RegistryError

if TYPE_CHECKING:
    from pipeline.registry.transfer import Imported


def download(arguments: argparse.Namespace) -> None:
    """Copies a version's artifact into a folder, whole or not at all."""
    folder: Path = arguments.folder
    if folder.exists():
        raise RegistryError(f"{folder} exists already")
    registry = open_registry(arguments.uri)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            registry.download(arguments.reference, scratch).rename(folder)
    except OSError as error:
        raise RegistryError(f"{folder} cannot be written: {error.strerror}") from error
    say(arguments, {"folder": str(folder)}, f"{arguments.reference} is in {folder}")


def export(arguments: argparse.Namespace) -> None:
    """Writes versions into a folder or copies them into another registry."""
    from pipeline.registry.transfer import copy_versions, export_versions, selected

    registry = open_registry(arguments.uri)
    prompts = selected(registry, arguments.what)
    titles = [prompt.title for prompt in prompts]
    target: str = arguments.target
    if arguments.dry_run:
        values = {"would_export": titles, "target": shown_uri(target)}
        say(arguments, values, f"would export {', '.join(titles)} to {shown_uri(target)}")
        return
    if "://" in target:
        other = open_registry(target, create=True)
        if other.location.uri == registry.location.uri:
            raise RegistryError(f"{shown_uri(target)} is the registry that they are in")
        _report(arguments, copy_versions(registry, prompts, other))
        return
    export_versions(registry, prompts, Path(target))
    values = {"exported": titles, "folder": target}
    say(arguments, values, f"exported {', '.join(titles)} to {target}")


def bring(arguments: argparse.Namespace) -> None:
    """Registers the versions of an exported folder."""
    from pipeline.registry.bundle import read_bundle
    from pipeline.registry.transfer import import_versions

    if arguments.dry_run:
        bundle = read_bundle(arguments.folder)
        titles = [f"{bundle.name}/{version.version}" for version in bundle.versions]
        name = arguments.name or bundle.name
        values = {"would_import": titles, "name": name}
        say(arguments, values, f"would import {', '.join(titles)} as {name}: all files are whole")
        return
    registry = open_registry(arguments.uri, create=True)
    _report(arguments, import_versions(registry, arguments.folder, arguments.name))


def _report(arguments: argparse.Namespace, done: Sequence[Imported]) -> None:
    values: list[dict[str, Any]] = []
    lines = []
    for each in done:
        values.append(
            {
                "origin": each.origin,
                "name": each.prompt.name,
                "version": each.prompt.version,
                "added": each.added,
                "aliases_left": list(each.aliases_left),
            }
        )
        what = "is" if each.added else "was there already as"
        left = "".join(f"; @{alias} stays where it is" for alias in each.aliases_left)
        lines.append(f"{each.origin} {what} {title(each.prompt)}{left}")
    say(arguments, values, "\n".join(lines))
