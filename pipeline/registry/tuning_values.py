"""A tuning configuration as plain values in a prompt's record, and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from model.tuning.config import TuningConfig

from pipeline.errors import RegistryError

Built = TypeVar("Built")


def folded(config: TuningConfig) -> dict[str, Any]:
    """The configuration that the exported tensors have: the projection is already applied."""
    prefix = dataclasses.replace(config.prefix, projection_dim=None)
    plain = dataclasses.asdict(dataclasses.replace(config, prefix=prefix))
    values: dict[str, Any] = json.loads(json.dumps(plain))
    return values


def from_values(values: Mapping[str, Any], prompt: str) -> TuningConfig:
    """Builds the configuration that a record describes.

    Args:
        values: What `folded` gave.
        prompt: Name of the prompt, for messages.

    Raises:
        RegistryError: a value is unknown or impossible in this version.
    """
    return _build(TuningConfig, values, f"prompt {prompt!r}, tuning")


def _build(kind: type[Built], values: Mapping[str, Any], where: str) -> Built:
    hints = get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise RegistryError(f"{where}: unknown setting {unknown[0]!r}")
    settings = {
        name: _build(hints[name], value, f"{where}.{name}")
        if dataclasses.is_dataclass(hints[name])
        else value
        for name, value in values.items()
    }
    try:
        return kind(**settings)
    except (TypeError, ValueError) as error:
        raise RegistryError(f"{where}: {error}") from error
