"""What a frozen base spares, and the memory that it spares it with.

Weights that never change let everything that follows from them alone be computed once. Each saving
can be switched off: that is how the benchmarks find out what it is worth.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

import torch

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Savings:
    """The savings of a frozen base. None of them changes a result beyond rounding."""

    fold_batch_norm: bool = True
    """Convolve with weights that BatchNorm's scale and shift are already part of."""
    channels_last: bool = True
    """Keep the trunk's features with their channels adjacent, as convolutions compute them."""
    keep_positions: bool = True
    """Compute the biases of positions once for a shape."""
    share_bias: bool = True
    """Let the samples of a batch share one bias; padding cuts keys off instead of adding to it."""

    @classmethod
    def none(cls) -> Savings:
        """Return all of them switched off."""
        return cls(
            fold_batch_norm=False, channels_last=False, keep_positions=False, share_bias=False
        )


class Memory:
    """Results that follow from frozen weights, the least recently used of a kind forgotten first.

    A copy of a memory, and so a copy of a model that has one, starts empty.
    """

    def __init__(self, limits: Mapping[str, int]) -> None:
        """Takes the number of results of each kind that are kept."""
        self._limits = dict(limits)
        self._kept: dict[str, OrderedDict[Hashable, object]] = {}
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._kept = {kind: OrderedDict() for kind in self._limits}

    def __len__(self) -> int:
        return sum(len(kept) for kept in self._kept.values())

    def recall(self, kind: str, key: Hashable, make: Callable[[], T]) -> T:
        """Return what was made for a key before, or make it, outside of autograd.

        Args:
            kind: one of the kinds with a limit.
            key: all that the result depends on, besides the weights.
            make: makes it.
        """
        kept = self._kept[kind]
        if key in kept:
            kept.move_to_end(key)
        else:
            # A tensor that is made in inference mode could never be used for training.
            with torch.inference_mode(False), torch.no_grad():
                kept[key] = make()
            if len(kept) > self._limits[kind]:
                kept.popitem(last=False)
        return cast(T, kept[key])

    def __reduce__(self) -> tuple[type[Memory], tuple[dict[str, int]]]:
        return Memory, (self._limits,)
