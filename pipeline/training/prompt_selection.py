"""Which validation is the best of each prompt, where a run trains several.

A prompt that has learnt its task early must not wait for the others, and its best step is not
theirs. So each is judged by a metric of its own task, and the run gives up when none gets better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pipeline.config import RunConfig
from pipeline.tasks.registry import get_task
from pipeline.training.checkpoint import Best, RunState, Standing
from pipeline.training.config import TrainingConfig
from pipeline.training.selection import Selection
from pipeline.training.validation import loss_of

NEVER = Standing(best=None, mark=None)


class PromptSelection:
    """A selection for each prompt, with one patience for all."""

    metric = "result of any prompt"
    """What is waited for, in words."""

    def __init__(self, config: RunConfig) -> None:
        training = config.training
        answered = training.answered_tasks()
        self._of = {
            name: Selection(_judged_by(training, name, answered=name in answered))
            for name in config.prompt_names()
        }
        self._patience = training.patience

    def judged(self, state: RunState, metrics: Mapping[str, float]) -> RunState:
        """The state after a validation.

        Args:
            state: The run's, at the step of the validation.
            metrics: What was measured.

        Raises:
            ConfigError: a prompt's task was not measured.
        """
        standings, stale = {}, state.stale + 1
        for name, selection in self._of.items():
            former = state.prompts.get(name, NEVER)
            seen = replace(state, best=former.best, mark=former.mark, stale=0)
            now = selection.judged(seen, _own(metrics, name))
            standings[name] = Standing(best=now.best, mark=now.mark)
            if now.stale == 0:
                stale = 0
        return replace(state, prompts=standings, stale=stale)

    def gives_up(self, state: RunState) -> bool:
        """Whether the run has waited long enough for any prompt to get better."""
        return self._patience is not None and state.stale >= self._patience

    def improved(self, before: RunState, after: RunState) -> dict[str | None, Best]:
        """The prompts whose best is a new one."""
        return {
            name: now.best
            for name, now in after.prompts.items()
            if now.best is not None and now.best is not before.prompts.get(name, NEVER).best
        }

    def best_metrics(self, state: RunState) -> dict[str, float]:
        """Metrics of each prompt's own best validation."""
        found: dict[str, float] = {}
        for standing in state.prompts.values():
            found |= standing.best.metrics if standing.best else {}
        return found


def selection_of(config: RunConfig) -> Selection | PromptSelection:
    """How the best of a run is chosen."""
    return PromptSelection(config) if config.prompt_names() else Selection(config.training)


def _judged_by(training: TrainingConfig, task: str, *, answered: bool) -> TrainingConfig:
    if answered:
        return replace(training, best_metric=get_task(task).metric, best_direction="larger")
    return replace(training, best_metric=loss_of(task), best_direction="smaller")


def _own(metrics: Mapping[str, float], task: str) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith(f"{task}/")}
