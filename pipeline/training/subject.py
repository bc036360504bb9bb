"""What a run trains: a base with its tuning method, and what proves that the rest stayed alone."""

from __future__ import annotations

import torch
from torch import nn

from model.checkpoint import fingerprint, load_base, load_config
from model.ofa.model import OFA
from model.tuning import TunedModel, build_tuned_model
from pipeline.config import RunConfig
from pipeline.errors import ConfigError

BUFFER = "buffer/"
"""Before the names of buffers in a checkpoint."""


def build_model(config: RunConfig) -> TunedModel:
    """The base with what is tuned, on the CPU, the same on every rank.

    Raises:
        CheckpointError: the base is missing or damaged.
        ConfigError: what is tuned does not fit the base.
    """
    torch.manual_seed(config.seed)
    if config.base.random_init:
        base = OFA(load_config(config.base.path))
        base.initialise()
    else:
        base = load_base(config.base.path)
    base.regularisation.dropout = config.training.dropout
    base.regularisation.drop_path = config.training.drop_path
    try:
        return build_tuned_model(base, config.tuning, config.prompt_names())
    except ValueError as error:
        raise ConfigError(str(error)) from error


def frozen_fingerprint(model: TunedModel, whole: str) -> str:
    """The fingerprint of all that training must leave alone; whole is that of the whole base."""
    if model.freezes_base:
        return whole
    return fingerprint(model.base, without=model.trained_in_base())


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
