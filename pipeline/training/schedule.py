"""How long a run is, and its learning rate: functions of the step, with nothing to restore."""

from __future__ import annotations

import math

from pipeline.training.config import ScheduleConfig, TrainingConfig


def total_steps(config: TrainingConfig, epoch_length: int, global_batch: int) -> int:
    """Optimizer steps of a run; known before its first."""
    if config.max_steps is not None:
        return config.max_steps
    return max(1, round((config.epochs or 1.0) * epoch_length / global_batch))


def warmup_steps(config: ScheduleConfig, total_steps: int) -> int:
    """Steps of the warm-up."""
    if config.warmup_steps is not None:
        return min(config.warmup_steps, total_steps)
    return int(config.warmup_ratio * total_steps)


def learning_rate(config: ScheduleConfig, peak: float, step: int, total_steps: int) -> float:
    """The learning rate of a step.

    Args:
        config: Shape of warm-up and decay.
        peak: Learning rate after the warm-up.
        step: Optimizer steps already done; the first step of a run has 0.
        total_steps: Steps of the whole run.

    Returns:
        step + 1 shares of the peak during the warm-up, so that no step is wasted at zero; then the
        decay, which reaches final_lr after the last step.
    """
    warmup = warmup_steps(config, total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.name == "constant":
        return peak
    left = 1.0 - (step - warmup) / max(1, total_steps - warmup)
    share = left**config.power if config.name == "polynomial" else _half_cosine(left)
    return config.final_lr + (peak - config.final_lr) * share


def _half_cosine(left: float) -> float:
    return 0.5 * (1.0 - math.cos(math.pi * left))
