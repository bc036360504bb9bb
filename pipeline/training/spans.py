"""Where the time of a rank goes: seconds by what it was doing, and what it is doing now."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

DATA_WAIT = "data_wait"
FORWARD = "forward"
BACKWARD = "backward"
OPTIMIZER = "optimizer"
COLLECTIVE = "collective"
VALIDATION = "validation"
SAVING = "saving"
OF_A_STEP = (DATA_WAIT, FORWARD, BACKWARD, OPTIMIZER, COLLECTIVE)
"""Parts of every step."""
BETWEEN_STEPS = (VALIDATION, SAVING)
"""What happens after some steps only."""

_IN_WORDS = {
    DATA_WAIT: "waiting for data",
    FORWARD: "in the forward pass",
    BACKWARD: "in the backward pass, where it meets the other ranks",
    OPTIMIZER: "in the optimizer's step, where it meets the other ranks",
    COLLECTIVE: "waiting for the other ranks",
    VALIDATION: "validating",
    SAVING: "saving",
    "": "between two steps",
}


class Spans:
    """The clock of one rank.

    On an accelerator work goes on after the call that started it. The loss is read after each
    forward pass and the gradient's norm after the last step, so these two wait for what was
    started before them: `backward` can be too short there and `optimizer` too long by as much.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(OF_A_STEP + BETWEEN_STEPS, 0.0)
        """Since they were last taken."""
        self.times = dict.fromkeys(OF_A_STEP + BETWEEN_STEPS, 0)
        self._now = ""

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Times what happens inside as `name`."""
        outer, self._now = self._now, name
        began = time.perf_counter()
        try:
            yield
            # Where an error ended it, `doing` goes on telling what was done last.
            self._now = outer
        finally:
            self.seconds[name] += time.perf_counter() - began
            self.times[name] += 1

    @property
    def doing(self) -> str:
        """What the rank is doing, in words."""
        return _IN_WORDS[self._now]

    def clear(self) -> None:
        """Starts counting again."""
        for name in self.seconds:
            self.seconds[name], self.times[name] = 0.0, 0
