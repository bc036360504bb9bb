"""How `prefixworks registry` opens a store and prints what it found, for people or as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.tracking.config import DEFAULT_OUTPUT_DIR, TrackingConfig, resolve_store

if TYPE_CHECKING:
    from pipeline.registry.reference import RegisteredPrompt
    from pipeline.registry.store import PromptRegistry


def open_registry(uri: str | None, *, create: bool = False) -> PromptRegistry:
    """The registry behind a URI, or the usual one."""
    from pipeline.registry.store import PromptRegistry  # MLflow imports slowly: not for --help

    location = resolve_store(TrackingConfig(uri=uri), DEFAULT_OUTPUT_DIR)
    return PromptRegistry(location, create=create)


def shown_uri(uri: str) -> str:
    """A store's URI without the credentials that it may hold."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.netloc else uri


def plain(prompt: RegisteredPrompt) -> dict[str, Any]:
    """A version as JSON values."""
    return {**dataclasses.asdict(prompt), "uri": prompt.uri}


def say(arguments: argparse.Namespace, values: Any, text: str) -> None:
    """Prints JSON values where they were asked for, else the text."""
    print(json.dumps(values, indent=2) if arguments.json else text)


def title(prompt: RegisteredPrompt) -> str:
    """Name, number and aliases of a version."""
    aliases = "".join(f" @{alias}" for alias in prompt.aliases)
    return f"{prompt.name} version {prompt.version}{aliases}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns of equal width."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
