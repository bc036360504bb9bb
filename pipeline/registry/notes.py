"""What people add to a registered version: tags of their own and a note above the card.

Tags that the registry wrote are facts of the artifact and cannot be changed by hand; the card stays
below the note, whatever is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.errors import RegistryError
from pipeline.registry.card import noted
from pipeline.registry.interface import PROMOTION_TAG, is_generated_tag
from pipeline.registry.reference import RegisteredPrompt
from pipeline.registry.store import PromptRegistry, refusals

_LONGEST_NOTE = 900
"""Characters; note and card have to fit into what every store takes as a description."""


def annotate_version(
    registry: PromptRegistry,
    reference: str,
    *,
    tags: Mapping[str, str] | None = None,
    removed: Sequence[str] = (),
    note: str | None = None,
) -> RegisteredPrompt:
    """Adds to a version what people know of it.

    Args:
        registry: The registry.
        reference: The version.
        tags: Tags to set.
        removed: Tags to remove.
        note: Text above the card; an empty one removes it.

    Returns:
        The version as it is now.

    Raises:
        RegistryError: a tag is one that the registry writes itself, is not there to remove, or the
            note is too long.
    """
    prompt = registry.get(reference)
    tags = dict(tags or {})
    check_notes(prompt, tags, removed, note)
    write_notes(registry, prompt, tags, removed, note)
    return registry.get(prompt.title)


def write_notes(
    registry: PromptRegistry,
    prompt: RegisteredPrompt,
    tags: Mapping[str, str],
    removed: Sequence[str],
    note: str | None,
) -> None:
    """Writes tags and note without a question; see `annotate_version`."""
    number = str(prompt.version)
    with refusals(f"{prompt.title} was not annotated"):
        for tag, value in tags.items():
            registry.client.set_model_version_tag(prompt.name, number, tag, value)
        for tag in removed:
            registry.client.delete_model_version_tag(prompt.name, number, tag)
        if note is not None:
            text = noted(prompt.description, note)
            registry.client.update_model_version(prompt.name, number, description=text)


def check_notes(
    prompt: RegisteredPrompt, tags: Mapping[str, str], removed: Sequence[str], note: str | None
) -> None:
    """Refuses what cannot be annotated; see `annotate_version`."""
    for tag in [*tags, *removed]:
        if is_generated_tag(tag) or tag == PROMOTION_TAG:
            raise RegistryError(f"tag {tag!r} is written by the registry; choose another name")
    absent = [tag for tag in removed if tag not in prompt.tags]
    if absent:
        raise RegistryError(f"{prompt.title} has no tag {absent[0]!r}")
    if note is not None and len(note) > _LONGEST_NOTE:
        raise RegistryError(f"the note has {len(note)} characters; {_LONGEST_NOTE} are allowed")
