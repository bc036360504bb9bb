"""A foreign checkpoint as it was read, before it is known to fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from model.errors import CheckpointError

RESNET_BLOCKS = {
    "resnet50": (3, 4, 6),
    "resnet101": (3, 4, 23),
    "resnet152": (3, 8, 36),
}
"""Bottleneck blocks in the first three stages of the trunks that both layouts name."""

CODE_PIXELS = 8
"""Side in pixels of the image that one image code stands for; settings give the whole side."""


@dataclass(frozen=True)
class RawCheckpoint:
    """Settings and tensors of a checkpoint in our own terms."""

    settings: Mapping[str, Any]
    """Fields of OFAConfig that the checkpoint declares, and `vocab_size`, `code_count` and
    `bin_count`; what is not declared is told from the tensors."""
    tensors: Mapping[str, Tensor]
    """By the names that the model gives them."""
    files: tuple[Path, ...]
    """Files with the weights."""
    spell: Callable[[str], str] = str
    """Our name of a tensor to the file's."""


def translate(
    given: Mapping[str, Any],
    names: Mapping[str, str],
    demanded: Mapping[str, object],
    origin: Path,
) -> dict[str, Any]:
    """Translate the settings that two layouts have alike.

    Args:
        given: the checkpoint's settings.
        names: its name of a setting to ours; values are whole numbers.
        demanded: settings that change what is computed and cannot be told from tensors, with the
            only value that the model computes.
        origin: for messages.

    Raises:
        CheckpointError: a setting has another value than the demanded one, or no number.
    """
    for name, value in demanded.items():
        if name in given and given[name] != value:
            raise CheckpointError(
                f"{origin}: {name} is {given[name]!r}; this model computes with {value!r} only"
            )
    settings: dict[str, Any] = {}
    for name, own in names.items():
        if given.get(name) is not None:
            settings[own] = whole(given[name], name, origin)
    if given.get("code_image_size") is not None:
        pixels = whole(given["code_image_size"], "code_image_size", origin)
        settings["code_grid_size"] = pixels // CODE_PIXELS
    if given.get("resnet_type") in RESNET_BLOCKS:
        settings["resnet_blocks"] = RESNET_BLOCKS[given["resnet_type"]]
    return settings


def whole(value: object, name: str, origin: Path) -> int:
    """Return a setting as a whole number.

    Raises:
        CheckpointError: it is none.
    """
    try:
        number = int(str(value))
    except ValueError as error:
        raise CheckpointError(f"{origin}: {name} is {value!r}, no whole number") from error
    return number


def tensors_of(content: object, origin: Path) -> dict[str, Tensor]:
    """Return a state dict, checked to be one.

    Raises:
        CheckpointError: it is not a mapping of names to tensors.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{origin} holds no tensors by name")
    wrong = [name for name, tensor in content.items() if not isinstance(tensor, Tensor)]
    if wrong:
        raise CheckpointError(f"{origin}: {wrong[0]!r} is not a tensor")
    return {str(name): tensor for name, tensor in content.items()}
