"""A tuning configuration as plain values in a prompt's record, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from model.tuning.config import TuningConfig
from pipeline.config_tree import build, plain
from pipeline.errors import ConfigError, RegistryError


def folded(config: TuningConfig) -> dict[str, Any]:
    """The configuration that the exported tensors have: what only training needs is applied."""
    prefix = dataclasses.replace(config.prefix, projection_dim=None, layer_lr_decay=1.0)
    values: dict[str, Any] = plain(dataclasses.replace(config, prefix=prefix))
    return values


def from_values(values: Mapping[str, Any], prompt: str) -> TuningConfig:
    """Builds the configuration that a record describes.

    Args:
        values: What `folded` gave.
        prompt: Name of the prompt, for messages.

    Raises:
        RegistryError: a value is unknown or impossible in this version.
    """
    try:
        config: TuningConfig = build(TuningConfig, values, "tuning")
    except (ConfigError, ValueError) as error:
        raise RegistryError(f"prompt {prompt!r}: {error}") from error
    return config
