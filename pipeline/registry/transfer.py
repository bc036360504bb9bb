"""Registered prompts into folders and other registries, with tags, notes and digests.

Doing it again does no harm: a version that the other registry has already, with the same tensors
and the same record, is not added a second time. So a transfer that was cut off is just repeated.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import RegistryError
from pipeline.registry.bundle import BUNDLE_FILE, Bundle, BundledVersion, digests, read_bundle
from pipeline.registry.card import note_of
from pipeline.registry.interface import is_generated_tag
from pipeline.registry.notes import write_notes
from pipeline.registry.reference import RegisteredPrompt
from pipeline.registry.store import PromptRegistry

ORIGIN_TAG = "imported_from"
"""Tag of an imported version: its name and number where it comes from."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What became of one version of a bundle."""

    origin: str
    prompt: RegisteredPrompt
    added: bool
    """False where the registry had the version already."""
    aliases_left: tuple[str, ...]
    """Aliases that stand for another version here and were left there."""


def selected(registry: PromptRegistry, what: str) -> list[RegisteredPrompt]:
    """The versions that `name`, `name/version` or `name@alias` means."""
    if "@" in what or "/" in what:
        return [registry.get(what)]
    found = registry.versions(what)
    if not found:
        raise RegistryError(f"{what} has no versions to export")
    return found


def export_versions(
    registry: PromptRegistry, prompts: Sequence[RegisteredPrompt], folder: Path
) -> Bundle:
    """Writes versions of one registered prompt into a folder.

    Args:
        registry: The registry that has them.
        prompts: The versions.
        folder: Folder to make; it must not exist.

    Raises:
        RegistryError: the folder exists, or files cannot be fetched or written.
    """
    target = folder.resolve()
    if target.exists():
        raise RegistryError(f"{folder} exists already; choose another folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise RegistryError(f"{folder} cannot be written: {error}") from error
    try:
        bundle = _write(registry, prompts, scratch / "new")
        (scratch / "new").rename(target)
        return bundle
    except OSError as error:
        raise RegistryError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def import_versions(
    registry: PromptRegistry, folder: Path, name: str | None = None
) -> list[Imported]:
    """Registers the versions of an exported folder.

    Args:
        registry: The registry that receives them.
        folder: What `export_versions` wrote; all of it is checked before anything is registered.
        name: Registered name; that of the export by default.

    Raises:
        RegistryError: a file is missing or was changed, or the registry refuses a version.
    """
    bundle = read_bundle(folder)
    title = name or bundle.name
    ordered = sorted(bundle.versions, key=lambda version: version.version)
    return [_import(registry, folder, bundle.name, version, title) for version in ordered]


def copy_versions(
    source: PromptRegistry, prompts: Sequence[RegisteredPrompt], target: PromptRegistry
) -> list[Imported]:
    """Brings versions of one registered prompt into another registry; see `import_versions`."""
    with tempfile.TemporaryDirectory(prefix="prefixworks-export-") as scratch:
        folder = Path(scratch) / "bundle"
        export_versions(source, prompts, folder)
        return import_versions(target, folder)


def _write(registry: PromptRegistry, prompts: Sequence[RegisteredPrompt], folder: Path) -> Bundle:
    versions = []
    for prompt in prompts:
        place = f"versions/{prompt.version}"
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        with registry.fetched(prompt.title) as artifact:
            shutil.copytree(artifact, folder / place)
        versions.append(
            BundledVersion(
                version=prompt.version,
                aliases=prompt.aliases,
                tags=prompt.tags,
                description=prompt.description,
                folder=place,
                files=digests(folder / place),
            )
        )
    bundle = Bundle(name=prompts[0].name, versions=tuple(versions))
    with (folder / BUNDLE_FILE).open("w", encoding="utf-8") as stream:
        stream.write(bundle.to_json())
        stream.flush()
        os.fsync(stream.fileno())
    # Checked as another registry will check it: a torn download never becomes a bundle.
    return read_bundle(folder)


def _import(
    registry: PromptRegistry, folder: Path, origin: str, version: BundledVersion, name: str
) -> Imported:
    digests_of = (version.tags.get("prompt_digest", ""), version.tags.get("record_digest", ""))
    known = registry.same(name, *digests_of)
    prompt = known or registry.register(folder / version.folder, name)
    own = {tag: value for tag, value in version.tags.items() if not is_generated_tag(tag)}
    own.setdefault(ORIGIN_TAG, f"{origin}/{version.version}")
    # Also where the version is known: an import that was cut off may not have come to its tags.
    missing = {tag: value for tag, value in own.items() if tag not in prompt.tags}
    note = note_of(version.description) if not note_of(prompt.description) else None
    write_notes(registry, prompt, missing, (), note or None)
    left = []
    for alias in version.aliases:
        holder = registry.holder(name, alias)
        if holder is None:
            registry.set_alias(prompt.title, alias)
        elif holder.version != prompt.version:
            left.append(alias)
    return Imported(
        origin=f"{origin}/{version.version}",
        prompt=registry.get(prompt.title),
        added=known is None,
        aliases_left=tuple(left),
    )
