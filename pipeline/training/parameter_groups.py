"""Which trained parameters share a learning rate and a weight decay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.training.config import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that the optimizer treats alike."""

    parameters: tuple[nn.Parameter, ...]
    lr_scale: float
    """Factor on the learning rate of a step."""
    weight_decay: float
    prompt: str | None = None
    """The prompt that they belong to, where there are several."""


def prompt_groups(
    trained: Mapping[str, Tensor],
    settings: OptimizerConfig,
    prompts: Sequence[str],
    dimensions: Callable[[Tensor], int] = Tensor.dim,
) -> list[ParameterGroup]:
    """Deals the parameters of several prompts to groups of one prompt each.

    Args:
        trained: Parameters by name, each behind the name of its prompt and a dot.
        settings: The groups, and what holds without them; a pattern may be about some prompts only.
        prompts: Names of the prompts.
        dimensions: As of `parameter_groups`.

    Raises:
        ConfigError: a pattern decides about no parameter.
    """
    owner = {id(tensor): name.split(".", 1)[0] for name, tensor in trained.items()}
    return [
        replace(group, parameters=own, prompt=prompt)
        for group in parameter_groups(trained, settings, dimensions)
        for prompt in prompts
        if (own := tuple(p for p in group.parameters if owner[id(p)] == prompt))
    ]


def parameter_groups(
    trained: Mapping[str, Tensor],
    settings: OptimizerConfig,
    dimensions: Callable[[Tensor], int] = Tensor.dim,
) -> list[ParameterGroup]:
    """Deals the trained parameters to groups: to the first whose pattern matches, or to the rest.

    Args:
        trained: Parameters by name, also buffers, which are left out. A tied parameter may have
            several names; it belongs to the first group that matches any of them.
        settings: The groups, and what holds without them.
        dimensions: Of a parameter, of which a rank may hold a flat part.

    Returns:
        Groups that are not empty; parameters with one dimension never decay and stand apart.

    Raises:
        ConfigError: a pattern decides about no parameter.
    """
    names: dict[nn.Parameter, list[str]] = {}
    for name, tensor in trained.items():
        if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
            names.setdefault(tensor, []).append(name)
    left, found = dict(names), []
    for place, group in enumerate(settings.groups):
        taken = _matching(left, group.match)
        if not taken:
            raise ConfigError(
                f"optimizer.groups[{place}].match = {group.match!r}: {_why(names, group.match)}"
            )
        for parameter in taken:
            del left[parameter]
        decay = settings.weight_decay if group.weight_decay is None else group.weight_decay
        found += _split(taken, group.lr_scale, decay, dimensions)
    return found + _split(list(left), 1.0, settings.weight_decay, dimensions)


def _matching(names: Mapping[nn.Parameter, list[str]], pattern: str) -> list[nn.Parameter]:
    return [p for p, own in names.items() if any(fnmatchcase(name, pattern) for name in own)]


def _why(names: Mapping[nn.Parameter, list[str]], pattern: str) -> str:
    if _matching(names, pattern):
        return "all that it matches belongs to groups before it; put the narrower pattern first"
    known = sorted(name for own in names.values() for name in own)
    more = f" and {len(known) - 4} more" if len(known) > 4 else ""
    return f"matches nothing that is trained; there is {', '.join(known[:4])}{more}"


def _split(
    parameters: list[nn.Parameter],
    lr_scale: float,
    weight_decay: float,
    dimensions: Callable[[Tensor], int],
) -> list[ParameterGroup]:
    decaying = [p for p in parameters if dimensions(p) > 1]
    others = [p for p in parameters if dimensions(p) <= 1]
    return [
        ParameterGroup(parameters=tuple(group), lr_scale=lr_scale, weight_decay=decay)
        for group, decay in ((decaying, weight_decay), (others, 0.0))
        if group
    ]
