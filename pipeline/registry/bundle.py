"""Versions of a registered prompt as a folder: to keep, to carry, to bring into another registry.

    registry.json            names, tags, descriptions, aliases, and the digest of every file
    versions/<number>/       the prompt artifact of that version

The folder appears whole or not at all. It comes from anywhere, so reading it trusts nothing: paths
stay inside, every file must have the recorded digest, and no file is run.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import RegistryError
from pipeline.registry.artifact import read_prompt
from pipeline.registry.reference import check_name

BUNDLE_FILE = "registry.json"
BUNDLE_FORMAT = "prefixworks.registry/1"
"""Name and version of the format; a reader refuses any version that it does not know."""


@dataclass(frozen=True, kw_only=True)
class BundledVersion:
    """One version in a bundle."""

    version: int
    """Its number where it comes from; another registry gives its own."""
    aliases: tuple[str, ...]
    tags: dict[str, str]
    description: str
    folder: str
    """Its artifact, relative to the bundle."""
    files: dict[str, str]
    """SHA-256 of each file of the artifact, by its path in the artifact."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What `registry.json` says."""

    name: str
    versions: tuple[BundledVersion, ...]

    def to_json(self) -> str:
        """Renders the bundle; equal bundles give equal text."""
        values = {"format": BUNDLE_FORMAT, **asdict(self)}
        return json.dumps(values, indent=2, sort_keys=True) + "\n"


def read_bundle(folder: Path) -> Bundle:
    """Reads a bundle and checks every file of it.

    Raises:
        RegistryError: it is no bundle, of a newer format, or a file is missing or was changed.
    """
    path = folder / BUNDLE_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RegistryError(f"{folder} is no exported prompt: {BUNDLE_FILE} is missing") from error
    except (OSError, ValueError) as error:
        raise RegistryError(f"{path} cannot be read: {error}") from error
    found = values.get("format") if isinstance(values, dict) else None
    if found != BUNDLE_FORMAT:
        raise RegistryError(f"{path} has the format {found!r}; this version reads {BUNDLE_FORMAT}")
    try:
        bundle = _bundle(values)
    except (KeyError, TypeError, ValueError) as error:
        raise RegistryError(f"{path} is damaged: {type(error).__name__} {error}") from error
    for version in bundle.versions:
        _check(folder, version)
    return bundle


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def _bundle(values: dict[str, Any]) -> Bundle:
    versions = tuple(
        BundledVersion(
            version=int(each["version"]),
            aliases=tuple(str(alias) for alias in each["aliases"]),
            tags=_texts(each["tags"]),
            description=str(each["description"]),
            folder=_inside(each["folder"]),
            files=_texts(each["files"]),
        )
        for each in values["versions"]
    )
    return Bundle(name=check_name(str(values["name"])), versions=versions)


def _texts(values: Any) -> dict[str, str]:
    if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
        raise ValueError("what must map names to texts does not")
    return dict(values)


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or PurePosixPath(path).is_absolute() or ".." in parts:
        raise ValueError(f"the path {path!r} leaves the folder")
    return path


def _check(folder: Path, version: BundledVersion) -> None:
    artifact = folder / version.folder
    if not artifact.resolve().is_relative_to(folder.resolve()):
        raise RegistryError(f"{artifact} leads out of {folder}")
    if any(path.is_symlink() for path in artifact.rglob("*")):
        raise RegistryError(f"{artifact} holds a link, which could lead anywhere")
    found = digests(artifact) if artifact.is_dir() else {}
    for name, digest in sorted(version.files.items()):
        if name not in found:
            raise RegistryError(f"{artifact / name} is missing")
        if found[name] != digest:
            raise RegistryError(
                f"{artifact / name} was changed: its sha256 is {found[name]}, recorded is {digest}"
            )
    unknown = sorted(set(found) - set(version.files))
    if unknown:
        raise RegistryError(f"{artifact / unknown[0]} is not recorded in {BUNDLE_FILE}")
    digest = read_prompt(artifact).record.digest
    if version.tags.get("prompt_digest") != digest:
        raise RegistryError(f"{artifact} holds {digest}, not the prompt that its tags name")
