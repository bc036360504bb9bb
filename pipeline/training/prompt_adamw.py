"""AdamW over several prompts that know nothing of each other.

The state of AdamW is elementwise, so one optimizer can hold all prompts; what would tie them
together is a common norm that clips them, and steps in which a prompt has no rows. Here every group
belongs to one prompt, is clipped by that prompt's norm, and rests where the prompt has no rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.training.parameter_groups import ParameterGroup

Gradient = Callable[[nn.Parameter], Tensor | None]
"""The whole gradient of a parameter, over all ranks; called on every rank in the same order."""

_SCALE, _IDLE = "prompt_scale", "prompt_idle"


class PromptAdamW(torch.optim.AdamW):
    """AdamW that scales the gradients of a group, and leaves out groups that are idle."""

    def step(self, closure: Any = None) -> Any:
        """Takes a step with the groups that are not idle.

        Where an engine hands in one group at a time, that is all that is looked at.
        """
        groups = self.param_groups
        active = [group for group in groups if not group.get(_IDLE)]
        for group in active:
            scale = group.get(_SCALE, 1.0)
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            if scale != 1.0 and gradients:
                torch._foreach_mul_(gradients, scale)
        self.param_groups = active
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups


class PromptClipping:
    """Says before each step how far each prompt's gradient is scaled, and which prompts rest."""

    def __init__(
        self, groups: Sequence[ParameterGroup], names: Sequence[str], clip_norm: float
    ) -> None:
        """Takes the parameters.

        Args:
            groups: As the optimizer has them, each of one prompt.
            names: The prompts.
            clip_norm: Largest L2 norm of a prompt's gradient; 0 for any.
        """
        self._names = tuple(names)
        self._owners = [group.prompt for group in groups]
        self._parameters = {
            name: [p for group in groups if group.prompt == name for p in group.parameters]
            for name in names
        }
        self._clip_norm = clip_norm

    def prepare(
        self, groups: Sequence[dict[str, Any]], gradient: Gradient, idle: Collection[int]
    ) -> float:
        """Prepares the next step of an optimizer; every rank calls it.

        Args:
            groups: The optimizer's.
            gradient: Looks a gradient up, when those of all micro-batches and ranks are summed.
            idle: Places of the prompts that stay as they are.

        Returns:
            L2 norm of all gradients before clipping.
        """
        norms = {name: self._norm(name, gradient) for name in self._names}
        resting = {self._names[place] for place in idle}
        for group, owner in zip(groups, self._owners, strict=True):
            assert owner is not None, "every group belongs to a prompt"
            group[_IDLE] = owner in resting
            # As DeepSpeed has it for the norm of all.
            excess = (norms[owner] + 1e-6) / self._clip_norm if self._clip_norm else 0.0
            group[_SCALE] = 1.0 / excess if excess > 1.0 else 1.0
        return math.hypot(*norms.values())

    def _norm(self, name: str, gradient: Gradient) -> float:
        found = [gradient(parameter) for parameter in self._parameters[name]]
        parts = [each.detach().float().norm() for each in found if each is not None]
        return float(torch.stack(parts).norm()) if parts else 0.0
