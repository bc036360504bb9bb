"""Running a sweep's trials with Ray Tune: where, how many at once, and again if they break.

A trial is an actor that starts the training in processes of its own and follows it. Tune ends an
actor within seconds, which is too short to save: so trials are never ended by Tune. They are asked
to stop by files, and an actor is done when its training is.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

# Before Ray is imported, which reads some of them once.
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the other one speaks even if told not to
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
# What an actor says when its training has ended is no validation.
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")

from data_prep.ray_job import cluster
from jobs.sweep.folder import ASKED, FAILURE, Report, mark, word_of
from jobs.sweep.halving import Halving
from jobs.sweep.trial_run import TrialRun
from jobs.sweep.trials import Sweep, Trial
from pipeline.errors import TrainingError
from pipeline.training.signals import Listener

# isort: split
from ray import tune
from ray.tune.search import ConcurrencyLimiter, Searcher

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def run_trials(sweep: Sweep, todo: list[Trial]) -> bool:
    """Trains trials, each from where it stands, until all have ended.

    Args:
        sweep: The sweep, whose folder is held.
        todo: Trials that are to be trained on, in order.

    Returns:
        Whether the sweep was asked to stop; trials that ran then have saved their state.

    Raises:
        DataError: there is no Ray cluster at the address.
        TrainingError: Tune itself broke.
    """
    config, asked = sweep.config, sweep.folder / ASKED
    halving = Halving(sweep) if config.scheduler == "asha" else None
    cpus = max(trial.cpus for trial in todo)
    with ExitStack() as stack:
        gpus = config.concurrency * config.resources.gpus
        stack.enter_context(cluster(config.ray_address, config.concurrency * cpus, gpus))
        listener = stack.enter_context(Listener())
        for number in _STOP_SIGNALS:
            listener.on(number, asked.touch)
        records = stack.enter_context(tempfile.TemporaryDirectory(prefix="tune-"))
        tuner = _tuner(sweep, todo, halving, Path(records), cpus)
        # In the main thread Tune would take the signals for itself.
        with ThreadPoolExecutor(1, thread_name_prefix="tune") as thread:
            try:
                thread.submit(tuner.fit).result()
            except Exception as error:  # Tune's own errors are of any type
                raise TrainingError(f"Ray Tune broke off the sweep: {error}") from error
    return asked.exists()


def _tuner(
    sweep: Sweep, todo: list[Trial], halving: Halving | None, records: Path, cpus: int
) -> tune.Tuner:
    config = sweep.config
    # Its own account of each failure is a page; the last words of the trial are one line.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    resources: dict[str, float] = {"cpu": cpus, "gpu": config.resources.gpus}
    return tune.Tuner(
        tune.with_resources(_TrialActor, resources),
        tune_config=tune.TuneConfig(
            search_alg=ConcurrencyLimiter(_InOrder(sweep, todo, halving), config.concurrency),
            num_samples=len(todo),
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=str(records),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=config.max_failures),
            callbacks=[_Follower(sweep, halving)],
            verbose=0,
        ),
    )


def _name(trial: Any) -> str:
    return str(trial.config["trial"].name)


class _InOrder(Searcher):
    """Hands out the trials in their order, and none any more once the sweep is asked to stop."""

    def __init__(self, sweep: Sweep, todo: list[Trial], halving: Halving | None) -> None:
        super().__init__()
        self._sweep, self._halving = sweep, halving
        self._left = list(todo)

    def suggest(self, trial_id: str) -> Any:
        """The next trial, as its actor is told of it."""
        if not self._left or (self._sweep.folder / ASKED).exists():
            return Searcher.FINISHED
        trial = self._left.pop(0)
        told_step = -1 if self._halving is None else self._halving.told_step(trial)
        metric, asked = self._sweep.metric, self._sweep.folder / ASKED
        run = {"trial": trial, "metric": metric, "told_step": told_step, "asked": asked}
        return {**run, "working_dir": str(Path.cwd())}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Has nothing to learn: which trials there are is settled."""

    def save(self, checkpoint_path: str) -> None:
        """Keeps nothing: what is left is told by the folders of the trials."""

    def restore(self, checkpoint_path: str) -> None:
        """Has nothing to take up."""


class _TrialActor(tune.Trainable):
    """One trial; a step of it lasts until the next validation."""

    def setup(self, config: dict[str, Any]) -> None:
        """Starts the training; relative paths are meant from the sweep's own working folder."""
        os.chdir(config["working_dir"])
        self._run = TrialRun(
            config["trial"], config["metric"], config["told_step"], config["asked"]
        )

    def step(self) -> dict[str, Any]:
        """The next validation, or that there is none any more."""
        report = self._run.next_report()
        if report is None:
            return {"done": True}
        return {"done": False, "steps": report.step, "value": report.value}


class _Follower(tune.Callback):
    """Prints validations as they come, has them judged, and keeps failures."""

    def __init__(self, sweep: Sweep, halving: Halving | None) -> None:
        self._sweep, self._halving = sweep, halving

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Takes a validation."""
        if "value" not in result:
            return
        ours: Trial = trial.config["trial"]
        report = Report(step=result["steps"], value=result["value"])
        print(
            f"{ours.name}: step {report.step}, {self._sweep.metric.name} {report.value:.4f}",
            flush=True,
        )
        if self._halving is not None:
            self._halving.judge(ours.name, report)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Takes a failure that is final."""
        ours: Trial = trial.config["trial"]
        if word_of(ours) != "finished" and not (ours.folder / FAILURE).exists():
            mark(ours, FAILURE, {"exit_status": None, "error": "its process or machine was lost"})
