"""What happened since the last report: losses, speed, and where the time of the ranks went."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from pipeline.training.spans import BETWEEN_STEPS, DATA_WAIT, OF_A_STEP, Spans
from pipeline.training.world import World

_GIB = 2**30


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
    source_tokens: int = 0
    """Tokens of their instructions, bos and eos included."""
    samples: int = 0
    flops: float = 0.0
    """Operations that ran."""
    steps: int = 0


@dataclass(frozen=True)
class Report:
    """A window over all ranks, the same on every rank."""

    metrics: dict[str, float]
    data_wait_shares: list[float]
    """Of each rank: the share of the time in which it waited for its batch."""


class Window:
    """The steps between two reports of one rank; the ranks report at the same step."""

    def __init__(self, world: World, spans: Spans, peak_flops: float | None = None) -> None:
        """Prepares to sum up.

        Args:
            world: The ranks.
            spans: Clock of this rank; what it has counted is taken and cleared by each report.
            peak_flops: Operations a second that a rank could do; None leaves out utilisation.
        """
        self.sums = StepSums()
        self._world = world
        self._spans = spans
        self._peak_flops = peak_flops
        self._began = time.perf_counter()

    def open(self) -> None:
        """Starts the clock, when all is built and the first step comes next."""
        self._spans.clear()
        self._began = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps time that is spent otherwise, such as by validation, out of the speed."""
        paused = time.perf_counter()
        yield
        self._began += time.perf_counter() - paused

    def close(self) -> Report:
        """Reports over all ranks, and opens the next window; every rank calls it.

        Raises:
            LostContact: another rank is gone.
        """
        sums, now, size = self.sums, time.perf_counter(), self._world.size
        seconds, times = self._spans.seconds, self._spans.times
        own_slot = [0.0] * size
        own_slot[self._world.rank] = 1.0
        totals = self._world.total(
            [
                *(sums.loss, sums.nll, sums.counted, sums.tokens, sums.source_tokens),
                *(sums.samples, sums.flops),
                *(seconds[name] for name in OF_A_STEP),
                *(slot * seconds[DATA_WAIT] for slot in own_slot),
                *(slot * _peak_memory(self._world.device) for slot in own_slot),
            ]
        )
        loss, nll, counted, tokens, source_tokens, samples, flops = totals[:7]
        parts = dict(zip(OF_A_STEP, totals[7:], strict=False))
        waits, peaks = totals[-2 * size : -size], totals[-size:]
        elapsed, steps = now - self._began, max(1, sums.steps)
        metrics = {
            # A drop of nearly all tokens can leave none.
            "train/loss": loss / max(1.0, counted),
            "train/nll": nll / max(1.0, counted),
            "train/samples_per_s": samples / elapsed,
            "train/tokens_per_s": (source_tokens + tokens) / elapsed,
            "train/target_tokens_per_s": tokens / elapsed,
            "train/data_wait_share": sum(waits) / size / elapsed,
            "time/step_s": elapsed / steps,
            "memory/peak_gib": max(peaks) / _GIB,
        }
        metrics |= {f"time/{name}_s": parts[name] / size / steps for name in OF_A_STEP}
        # All ranks do these together, so this rank's time is that of all.
        metrics |= {f"time/{n}_s": seconds[n] / times[n] for n in BETWEEN_STEPS if times[n]}
        if flops:
            metrics["train/tflops_per_s"] = flops / elapsed / 1e12
            if self._peak_flops:
                metrics["train/flop_utilisation"] = flops / elapsed / size / self._peak_flops
        self.sums = StepSums()
        self.open()
        return Report(metrics, [wait / elapsed for wait in waits])


def _peak_memory(device: torch.device) -> float:
    """Bytes: of an accelerator's memory since the last report, else of this process so far."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return float(peak)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
