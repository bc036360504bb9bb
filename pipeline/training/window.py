"""What happened since the last report: losses, speed, and how long the ranks waited for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.training.world import World


@dataclass
class StepSums:
    """Sums over this rank's tokens since the last report."""

    loss: float = 0.0
    """What was minimised: label-smoothed loss, with R-Drop's divergence."""
    nll: float = 0.0
    """Negative log-likelihood of the labels."""
    counted: int = 0
    """Tokens that the two are over: those of both passes of R-Drop, without dropped ones."""
    tokens: int = 0
    """Labelled tokens of the samples."""
    samples: int = 0


class Window:
    """The steps between two reports of one rank; the ranks report at the same step."""

    def __init__(self, world: World) -> None:
        self.sums = StepSums()
        self._world = world
        self._began = time.perf_counter()
        self._waited = 0.0

    def open(self) -> None:
        """Starts the clock, when all is built and the first step comes next."""
        self._began = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps time that is spent otherwise, such as by validation, out of the speed."""
        paused = time.perf_counter()
        yield
        self._began += time.perf_counter() - paused

    def close(self, waited_s: float) -> dict[str, float]:
        """Reports over all ranks, and opens the next window; every rank calls it.

        Args:
            waited_s: Seconds that this rank has waited for data since the run began.

        Raises:
            TrainingError: another rank is gone.
        """
        sums, now = self.sums, time.perf_counter()
        loss, nll, counted, tokens, samples, waited = self._world.total(
            [sums.loss, sums.nll, sums.counted, sums.tokens, sums.samples, waited_s]
        )
        elapsed = now - self._began
        metrics = {
            # A drop of nearly all tokens can leave none.
            "train/loss": loss / max(1.0, counted),
            "train/nll": nll / max(1.0, counted),
            "train/samples_per_s": samples / elapsed,
            "train/tokens_per_s": tokens / elapsed,
            "train/data_wait_share": (waited - self._waited) / self._world.size / elapsed,
        }
        self.sums, self._waited = StepSums(), waited
        self._began = time.perf_counter()
        return metrics
