"""What a registered version is, and how people write which one they mean."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlflow.entities.model_registry import ModelVersion

from pipeline.errors import RegistryError

CHAMPION = "champion"
"""Alias of the version that is in use."""
CHALLENGER = "challenger"
"""Alias of the version that is tried against it."""
_NAME = re.compile(r"[\w.\- ]{1,200}")


@dataclass(frozen=True, kw_only=True)
class RegisteredPrompt:
    """One version of a registered prompt."""

    name: str
    version: int
    aliases: tuple[str, ...]
    tags: dict[str, str]
    description: str
    run_id: str | None
    created_ms: int

    @property
    def uri(self) -> str:
        """The version's MLflow URI."""
        return f"models:/{self.name}/{self.version}"

    @property
    def title(self) -> str:
        """Name and number, as references are written."""
        return f"{self.name}/{self.version}"


def parse_reference(reference: str) -> tuple[str, str | None, str | None]:
    """Splits a reference into name and version, or name and alias.

    Raises:
        RegistryError: it is neither `name/version` nor `name@alias`.
    """
    text = reference.removeprefix("models:/")
    name, at, alias = text.rpartition("@")
    if at and name and alias:
        return name, None, alias
    name, slash, version = text.rpartition("/")
    if slash and name and version.isdigit():
        return name, version, None
    raise RegistryError(f"{reference!r} is neither name@alias nor name/version")


def check_name(name: str) -> str:
    """Gives a name back that every store and every reference can carry.

    Raises:
        RegistryError: it holds other characters than letters, digits, `_`, `-`, `.` and blanks.
    """
    if not _NAME.fullmatch(name) or name != name.strip():
        raise RegistryError(
            f"{name!r} cannot name a registered prompt: take letters, digits, '_', '-' and '.'"
        )
    return name


def prompt_of(version: ModelVersion, aliases: tuple[str, ...]) -> RegisteredPrompt:
    """A version as MLflow tells it.

    Args:
        version: MLflow's entity.
        aliases: Its aliases, which searches leave out of the entity.
    """
    return RegisteredPrompt(
        name=version.name,
        version=int(version.version),
        aliases=tuple(sorted(aliases)),
        tags=dict(sorted(version.tags.items())),
        description=version.description or "",
        run_id=version.run_id or None,
        created_ms=int(version.creation_timestamp),
    )
