"""An exponential moving average of what is trained.

Each rank averages what it holds itself: whole parameters, or its shards of them. So the average
needs no communication, and costs as much memory as the trained values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class MovingAverage:
    """Averages of live tensors, which training changes."""

    def __init__(self, live: Callable[[], dict[str, Tensor]], decay: float) -> None:
        """Begins with what the tensors hold now.

        Args:
            live: Returns the tensors by name; asked each time, since an optimizer may move them.
            decay: Share of the average that a step keeps, below 1.
        """
        self._live = live
        self._decay = decay
        self._averages = {name: tensor.detach().clone() for name, tensor in live().items()}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Takes in what a step has made.

        Args:
            steps: Optimizer steps done, this one included. While they are few, less is kept than
                `decay` says: the first values are random and would weigh for long.
        """
        kept = min(self._decay, (1 + steps) / (10 + steps))
        for name, tensor in self._live().items():
            self._averages[name].lerp_(tensor, 1.0 - kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the averages into the live tensors, and back what was there, bit by bit."""
        held = {name: tensor.detach().clone() for name, tensor in self._live().items()}
        self._put(self._averages)
        try:
            yield
        finally:
            self._put(held)

    def values(self) -> dict[str, Tensor]:
        """The averages of what this rank holds, by name; they are live, not copies."""
        return dict(self._averages)

    @torch.no_grad()
    def take(self, values: dict[str, Tensor]) -> None:
        """Continues from what `values` held, of the same names and shapes."""
        for name, average in self._averages.items():
            average.copy_(values[name])

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, tensor in self._live().items():
            tensor.copy_(values[name])
