"""What a run says while it goes on: to its hooks, and to whoever looks at the terminal."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pipeline.config import RunConfig
from pipeline.training.hooks import Hook, MetricsFile
from pipeline.training.progress import ProgressBar
from pipeline.training.starving import DataWaitAdvice
from pipeline.training.summary import TrainingResult
from pipeline.training.window import Report


class Reporter:
    """Speaks for the run on rank 0, and is silent elsewhere."""

    def __init__(self, config: RunConfig, hooks: Sequence[Hook], *, leads: bool) -> None:
        self._config = config
        self._hooks = list(hooks) if leads else []
        self._leads = leads
        self._advice = DataWaitAdvice(config.data)

    def start(self, run_dir: Path, first: int, total: int) -> ProgressBar:
        """Tells the hooks that steps begin.

        Args:
            run_dir: Folder of the run.
            first: Steps done before.
            total: Steps of the run.

        Returns:
            The bar, to be entered.
        """
        if self._leads:
            self._hooks.insert(0, MetricsFile(first))
        for hook in self._hooks:
            hook.on_start(run_dir, self._config)
        self.bar = ProgressBar(self._config.name, total, first, shown=self._leads)
        return self.bar

    def log(self, step: int, report: Report, more: Mapping[str, float], samples_left: int) -> None:
        """Reports the steps since the last report.

        Args:
            step: Steps done.
            report: Of the window.
            more: Other metrics of the step.
            samples_left: Samples of the steps to come.
        """
        metrics = {**report.metrics, **more}
        for hook in self._hooks:
            hook.on_log(step, metrics)
        self.bar.report(step, metrics, samples_left / metrics["train/samples_per_s"])
        said = self._advice.about(report.data_wait_shares)
        if said is not None:
            self.bar.say(said)

    def validated(
        self, step: int, metrics: Mapping[str, float], better: Collection[str | None]
    ) -> None:
        """Reports a validation.

        Args:
            step: Steps done.
            metrics: What was measured.
            better: The prompts that were better than before; None for a run's only one.
        """
        for hook in self._hooks:
            hook.on_validation(step, metrics)
        told = ", ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()))
        of = "".join(f" {name}" for name in better if name)
        self.bar.say(f"step {step}: {told}{f' (best{of})' if better else ''}")

    def end(self, result: TrainingResult) -> None:
        """Tells the hooks that all is written."""
        for hook in self._hooks:
            hook.on_end(result)
