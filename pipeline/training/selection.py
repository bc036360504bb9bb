"""Which validation of a run is its best, and when waiting for a better one ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from pipeline.errors import ConfigError
from pipeline.training.checkpoint import Best, RunState
from pipeline.training.config import TrainingConfig
from pipeline.training.validation import LOSS, NLL


class Selection:
    """Compares validations; all that it remembers is in the run's state, so that it resumes."""

    def __init__(self, config: TrainingConfig) -> None:
        self.metric = config.best_metric or LOSS
        """What is compared."""
        direction = config.best_direction
        self._smaller = self.metric in (LOSS, NLL) if direction is None else direction == "smaller"
        self._patience = config.patience
        self._min_delta = config.min_delta

    def judged(self, state: RunState, metrics: Mapping[str, float]) -> RunState:
        """The state after a validation; its `best` is another object where this is the best.

        Args:
            state: The run's, at the step of the validation.
            metrics: What was measured.

        Raises:
            ConfigError: the metric that decides is not among them.
        """
        if self.metric not in metrics:
            known = ", ".join(sorted(metrics))
            raise ConfigError(f"training.best_metric = {self.metric!r}: there is only {known}")
        value = metrics[self.metric]
        best, mark, stale = state.best, state.mark, state.stale + 1
        if best is None or self._better(value, best.value):
            best = Best(step=state.step, value=value, metrics=dict(metrics))
        if mark is None or self._better(value, mark, self._min_delta):
            mark, stale = value, 0
        return replace(state, best=best, mark=mark, stale=stale)

    def gives_up(self, state: RunState) -> bool:
        """Whether the run has waited long enough for a better validation."""
        return self._patience is not None and state.stale >= self._patience

    def improved(self, before: RunState, after: RunState) -> dict[str | None, Best]:
        """What a validation found to be the best: of the run, or of each prompt by its name."""
        return {} if after.best is None or after.best is before.best else {None: after.best}

    def best_metrics(self, state: RunState) -> dict[str, float]:
        """Metrics of the best validation."""
        return state.best.metrics if state.best else {}

    def _better(self, value: float, than: float, by: float = 0.0) -> bool:
        if math.isnan(than):
            return not math.isnan(value)
        return (than - value if self._smaller else value - than) > by
