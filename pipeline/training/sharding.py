"""Stage 3 before and beside the training: parameters of which each rank holds its share.

DeepSpeed shards a model that it is given, and so each rank would hold all of it first. Here each
module's parameters are dealt to the ranks as soon as they are read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import RunConfig
from pipeline.training.quiet_deepspeed import deepspeed, join_deepspeed


class Sharding:
    """Deals the parameters of modules to the ranks, which all call it with the same ones."""

    def __init__(self, config: RunConfig) -> None:
        join_deepspeed()
        place = config.engine.offload_parameters
        self._remote = None if place == "none" else place
        self._first: Any = None
        """A parameter that is dealt already: DeepSpeed deals others like it."""

    def settle(self, module: nn.Module) -> None:
        """Leaves of a module's own parameters this rank's share."""
        own = [p for p in module.parameters(recurse=False) if not is_sharded(p)]
        if not own:
            return
        if self._first is not None:
            self._first.convert_to_zero_parameters(param_list=own)
            return
        deepspeed.zero.Init(
            module=module,
            remote_device=self._remote,
            pin_memory=self._remote is not None and torch.cuda.is_available(),
        )
        self._first = own[0]


def is_sharded(tensor: Tensor) -> bool:
    """Whether ranks hold shares of a tensor."""
    return hasattr(tensor, "ds_id")


def whole_shape(tensor: Tensor) -> torch.Size:
    """The shape of a tensor of which a rank may hold a share."""
    shape: torch.Size = vars(tensor)["ds_shape"] if is_sharded(tensor) else tensor.shape
    return shape


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which a rank may hold a share; every rank asks for the same."""
    if not is_sharded(tensor):
        return tensor.detach()
    with deepspeed.zero.GatheredParameters([tensor], modifier_rank=None):
        return tensor.detach().clone()
