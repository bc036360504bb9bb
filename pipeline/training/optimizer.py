"""The optimizer of every engine: torch's own AdamW, since DeepSpeed's is compiled on first use."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model.tuning import TunedModel
from pipeline.training.config import OptimizerConfig
from pipeline.training.parameter_groups import ParameterGroup, parameter_groups, prompt_groups
from pipeline.training.prompt_adamw import PromptAdamW


def groups_of(
    model: TunedModel,
    settings: OptimizerConfig,
    dimensions: Callable[[Tensor], int] = Tensor.dim,
) -> list[ParameterGroup]:
    """Deals what a model trains to groups; of several prompts each has groups of its own.

    Args:
        model: The model.
        settings: The groups, and what holds without them.
        dimensions: Of a parameter, of which a rank may hold a flat part.

    Raises:
        ConfigError: a pattern decides about no parameter.
    """
    trained = model.method.trained(model.base)
    if model.prompt_names:
        return prompt_groups(trained, settings, model.prompt_names, dimensions)
    return parameter_groups(trained, settings, dimensions)


def adamw(groups: Sequence[ParameterGroup], settings: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over these groups; where they belong to several prompts, one that lets some rest."""
    kind = PromptAdamW if any(group.prompt for group in groups) else torch.optim.AdamW
    return kind(
        [{"params": group.parameters, "weight_decay": group.weight_decay} for group in groups],
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
    )
