"""Several prompts on one frozen base: every row of a batch has the one of its task.

The base runs once for the whole batch; only keys and values in front of self-attention differ from
row to row. What a prompt gets a gradient from are its own rows alone.

Dimensions: B batch, P prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.errors import CheckpointError
from model.ofa import OFA, OFAConfig
from model.ofa.prompts import LayerPrompt, Prompts, StackPrompt, stack_prompts
from model.tuning.config import TuningConfig
from model.tuning.method import TuningMethod
from model.tuning.prefix import PrefixTuning


class PrefixBank(TuningMethod):
    """Prompts by name; what is trained is named `<prompt>.<name in a prompt alone>`."""

    def __init__(self, base: OFAConfig, config: TuningConfig, names: Sequence[str]) -> None:
        """Makes the prompts.

        Raises:
            ValueError: there are no names, or a length is given for a prompt that there is not.
        """
        super().__init__(base, config)
        if not names:
            raise ValueError("tuning.prefix.per_task: true needs the names of the tasks")
        stray = sorted(set(config.prefix.task_lengths or {}) - set(names))
        if stray:
            raise ValueError(
                f"tuning.prefix.task_lengths.{stray[0]}: no prompt of that name is trained; there"
                f" is {', '.join(names)}"
            )
        self.names = tuple(names)
        self.dropout = config.prefix.dropout
        # Each begins with the numbers that it would have alone.
        state = torch.get_rng_state()
        self.bank = nn.ModuleDict()
        for name in names:
            torch.set_rng_state(state)
            self.bank[name] = PrefixTuning(base, _without_dropout(config.alone(name)))

    def prompt(self, name: str) -> PrefixTuning:
        """Return one of the prompts, the live one."""
        found = self.bank[name]
        assert isinstance(found, PrefixTuning)
        return found

    def prompts(self) -> Prompts:
        """Return all prompts, one row each, in the order of their names."""
        return stack_prompts([self.prompt(name).prompts() for name in self.names])

    def prompts_of_rows(self, prompt_index_B: Tensor | None) -> Prompts:
        """Return the prompt of each row; dropout falls on each row by itself.

        Raises:
            ValueError: it is not said which row has which prompt.
        """
        if prompt_index_B is None:
            raise ValueError(f"which row has which of {len(self.names)} prompts is not said")
        rows = self.prompts().select(prompt_index_B)
        if not self.training or self.dropout == 0.0:
            return rows
        return _dropped(rows, self.dropout, len(prompt_index_B))

    def trained(self, base: OFA) -> dict[str, Tensor]:
        """Return the live parameters of all prompts."""
        return {
            f"{name}.{key}": tensor
            for name in self.names
            for key, tensor in self.prompt(name).trained(base).items()
        }

    def export_state(self, base: OFA) -> dict[str, Tensor]:
        """Refuse: each prompt has an artifact of its own.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(f"{', '.join(self.names)}: each of these prompts is exported alone")

    def load_exported(self, base: OFA, tensors: dict[str, Tensor]) -> None:
        """Refuse: each prompt has an artifact of its own.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(f"{', '.join(self.names)}: each of these prompts is loaded alone")


def _without_dropout(config: TuningConfig) -> TuningConfig:
    # It falls on rows, which a prompt by itself does not know.
    return dataclasses.replace(config, prefix=dataclasses.replace(config.prefix, dropout=0.0))


def _dropped(prompts: Prompts, share: float, batch: int) -> Prompts:
    """Drop values of each row by itself, also of a prompt that all rows share."""

    def drop(tensor: Tensor) -> Tensor:
        return F.dropout(tensor.expand(batch, -1, -1, -1), share)

    def drop_in(stack: StackPrompt | None) -> StackPrompt | None:
        if stack is None:
            return None
        return tuple(None if p is None else LayerPrompt(drop(p.key), drop(p.value)) for p in stack)

    return dataclasses.replace(
        prompts, encoder=drop_in(prompts.encoder), decoder=drop_in(prompts.decoder)
    )
