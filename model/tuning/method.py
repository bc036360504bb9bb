"""What a tuning method is: what it adds to a base, what it trains, and what is kept of it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from model.errors import CheckpointError
from model.ofa import OFA, OFAConfig, Prompts
from model.tuning.config import TuningConfig


class TuningMethod(nn.Module):
    """One way to tune a base; the defaults suit a method that adds modules to a frozen base.

    A method owns the modules that it adds and nothing of the base, which is handed in where it is
    needed: so every parameter has one owner and one name, and the base keeps its own.
    """

    freezes_base: ClassVar[bool] = True
    """Whether the base stays as it is, byte for byte, so that other prompts can share it."""
    makes_base: ClassVar[bool] = False
    """Whether what comes out is a base of its own, and no artifact for the one it began with."""

    def __init__(self, base: OFAConfig, config: TuningConfig) -> None:
        super().__init__()

    def prepare(self, base: OFA) -> None:
        """Decide which parameters of the base are trained."""
        base.freeze()

    def prompts(self) -> Prompts | None:
        """Return what the method hands to the base in each pass; of several prompts, a row each."""
        return None

    def prompts_of_rows(self, prompt_index_B: Tensor | None) -> Prompts | None:
        """Return what a pass over a batch gets.

        Args:
            prompt_index_B: int64, which prompt each row has; a method with one for all rows does
                not look at it.
        """
        return self.prompts()

    def trained(self, base: OFA) -> dict[str, Tensor]:
        """Return the live parameters and buffers that training changes, by name."""
        return dict(self.state_dict(keep_vars=True))

    def export_state(self, base: OFA) -> dict[str, Tensor]:
        """Return CPU copies of what an artifact holds.

        Raises:
            CheckpointError: the method makes a base and no artifact.
        """
        return copied(self.trained(base))

    def load_exported(self, base: OFA, tensors: dict[str, Tensor]) -> None:
        """Take what `export_state` returned.

        Raises:
            CheckpointError: the tensors don't fit, or the method has no artifact.
        """
        fill(self.trained(base), tensors)


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return CPU copies that share no memory with each other or the originals."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


@torch.no_grad()
def fill(own: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    """Copy tensors into live ones of the same names.

    Raises:
        CheckpointError: names the first that are missing, unexpected or of another shape; nothing
            is copied then.
    """
    problems = [f"{name} is missing" for name in own if name not in given]
    problems += [f"{name} is unexpected" for name in given if name not in own]
    problems += [
        f"{name} has shape {list(given[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"the saved tensors don't fit this model: {'; '.join(problems[:3])}{more}"
        )
    for name, tensor in own.items():
        tensor.copy_(given[name])
