"""What a run trains: a base with its tuning method, and what proves that the rest stayed alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from model.checkpoint import fingerprint, load_base, load_base_in_parts, load_config
from model.ofa.model import OFA
from model.tensor_files import Whole
from model.tuning import TunedModel, build_tuned_model
from pipeline.config import RunConfig
from pipeline.errors import ConfigError

BUFFER = "buffer/"
"""Before the names of buffers in a checkpoint."""


def build_model(config: RunConfig, settle: Callable[[nn.Module], None] | None = None) -> TunedModel:
    """The base with what is tuned, on the CPU, the same on every rank.

    Args:
        config: The run.
        settle: Takes from each module of the base, as it comes, what this rank does not keep.

    Raises:
        CheckpointError: the base is missing or damaged.
        ConfigError: what is tuned does not fit the base.
    """
    base = _base(config, settle)
    base.regularisation.dropout = config.training.dropout
    base.regularisation.drop_path = config.training.drop_path
    # How a base comes into memory must not decide what the prompts begin with.
    torch.manual_seed(config.seed)
    try:
        return build_tuned_model(base, config.tuning, config.prompt_names())
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _base(config: RunConfig, settle: Callable[[nn.Module], None] | None) -> OFA:
    if not config.base.random_init:
        if settle is None:
            return load_base(config.base.path)
        return load_base_in_parts(config.base.path, settle)
    torch.manual_seed(config.seed)
    base = OFA(load_config(config.base.path))
    # Whole at first: each value that is drawn depends on all before it.
    base.initialise()
    if settle is not None:
        for module in reversed(list(base.modules())):
            settle(module)
    return base


def frozen_fingerprint(model: TunedModel, of_base: str, whole: Whole | None = None) -> str:
    """The fingerprint of all that training must leave alone.

    Args:
        model: The model.
        of_base: The fingerprint of the whole base.
        whole: Collects a tensor of which this rank holds a part.
    """
    if model.freezes_base:
        return of_base
    return fingerprint(model.base, without=model.trained_in_base(), whole=whole)


def batch_statistics(base: OFA) -> list[torch.Tensor]:
    """The running statistics that training moves."""
    if not base.batch_norm_trains:
        return []
    norms = [module for module in base.modules() if isinstance(module, nn.BatchNorm2d)]
    found = [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var)]
    return [tensor for tensor in found if tensor is not None]


def moved_buffers(model: TunedModel) -> dict[str, torch.Tensor]:
    """What training moves without a gradient, BatchNorm's own, as a checkpoint names it."""
    if not model.base.batch_norm_trains:
        return {}
    return {
        f"{BUFFER}{prefix}.{name}": buffer
        for prefix, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for name, buffer in module.named_buffers(recurse=False)
    }
