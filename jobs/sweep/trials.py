"""The trials of a sweep: each an ordinary training run with a configuration of its own."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jobs.sweep.config import SweepConfig
from jobs.sweep.space import Point, points
from pipeline.config import RunConfig
from pipeline.config_reader import load, to_yaml
from pipeline.config_tree import plain
from pipeline.errors import ConfigError
from pipeline.tasks.registry import get_task, task_names
from pipeline.tracking.config import resolve_store
from pipeline.tracking.introduction import experiment_name
from pipeline.tracking.secrets import redact
from pipeline.training.run_folder import run_folder
from pipeline.training.validation import LOSS, NLL, loss_of


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What trials are compared by."""

    name: str
    mode: Literal["min", "max"]

    def better(self, value: float, than: float) -> bool:
        """Whether a value beats another."""
        return value < than if self.mode == "min" else value > than


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep."""

    number: int
    """From 0; the task of an array job."""
    point: Point
    """What this trial is set to, by dotted setting."""
    run: RunConfig
    """Its whole configuration."""
    cpus: int
    """CPU cores that it takes."""

    @property
    def name(self) -> str:
        """Name of its run."""
        return self.run.name

    @property
    def folder(self) -> Path:
        """Folder of its run."""
        return run_folder(self.run)

    @property
    def said(self) -> str:
        """What it is set to, in words."""
        return ", ".join(f"{path}={_word(value)}" for path, value in self.point.items())


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep whose trials are known and can all be trained."""

    config: SweepConfig
    """As it was given, but with all settings of the shared run in it: it needs no recipe."""
    base: RunConfig
    """The run that the trials are variants of."""
    trials: list[Trial]
    metric: Metric

    @property
    def folder(self) -> Path:
        """Folder of the sweep, which holds those of its trials."""
        return Path(self.base.output_dir) / self.config.name


def resolved(config: SweepConfig) -> tuple[SweepConfig, RunConfig]:
    """A sweep that needs no other file any more, and the run that its trials share.

    Raises:
        ConfigError: the recipe or the settings cannot be used, or hold a password.
    """
    recipes: list[Any] = [] if config.recipe is None else [config.recipe]
    base = load(RunConfig, [{"name": config.name}, *recipes, config.settings])
    text = to_yaml(base)
    if redact(text) != text:
        raise ConfigError(
            "settings: hold a password, which would be written down; name the address in the"
            " environment, such as MLFLOW_TRACKING_URI"
        )
    return dataclasses.replace(config, recipe=None, settings=plain(base)), base


def plan(config: SweepConfig) -> Sweep:
    """Settles every trial of a sweep, and that each can be trained.

    Raises:
        ConfigError: a setting is unknown, a value of the wrong type, or a combination impossible.
    """
    whole, base = resolved(config)
    if base.tracking.parent_run is not None:
        raise ConfigError(
            f"settings.tracking.parent_run = {base.tracking.parent_run!r}: the trials of a sweep"
            " are children of the sweep; leave it out"
        )
    metric = _metric(config, base)
    trials = [_trial(whole, base, number, point) for number, point in enumerate(points(config))]
    for trial in trials:
        _check(config, metric, trial)
    return Sweep(config=whole, base=base, trials=trials, metric=metric)


def _trial(config: SweepConfig, base: RunConfig, number: int, point: Point) -> Trial:
    name = f"trial-{number:03d}"
    tree: dict[str, Any] = {}
    for path, value in point.items():
        _set(tree, path, value)
    try:
        run: RunConfig = load(RunConfig, [config.settings, tree])
    except ConfigError as error:
        raise ConfigError(f"space: {name} cannot be trained: {error}") from error
    engine, cpus = run.engine, config.resources.cpus
    cpus = cpus or engine.processes * (engine.threads_per_process or 1)
    if engine.threads_per_process is None:
        # Left open, each trial would take all cores for itself, beside the others.
        threads = max(1, cpus // engine.processes)
        engine = dataclasses.replace(engine, threads_per_process=threads)
    values = ", ".join(f"{path.rpartition('.')[2]} {_word(each)}" for path, each in point.items())
    tracking = dataclasses.replace(
        base.tracking,
        uri=resolve_store(base.tracking, base.output_dir).uri,
        experiment=base.tracking.experiment or experiment_name(base),
        run_name=f"{config.name} {number:03d} ({values})",
        parent_run=config.name,
    )
    run = dataclasses.replace(
        run,
        name=name,
        output_dir=str(Path(base.output_dir) / config.name),
        engine=engine,
        tracking=tracking,
    )
    return Trial(number=number, point=point, run=run, cpus=cpus)


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *sections, last = path.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"space.{path}: lies inside another setting of the space")
    if last in tree:
        raise ConfigError(f"space.{path}: holds another setting of the space")
    tree[last] = value


def _metric(config: SweepConfig, base: RunConfig) -> Metric:
    training = base.training
    name, mode = config.metric or training.best_metric, config.mode
    if name is None:
        answered = training.answered_tasks()
        name = get_task(answered[0]).metric if len(answered) == 1 else LOSS
    if mode is None and name == training.best_metric and training.best_direction is not None:
        mode = "min" if training.best_direction == "smaller" else "max"
    if mode is None:
        mode = "min" if name.endswith("/loss") or name == NLL else "max"
    return Metric(name=name, mode=mode)


def _check(config: SweepConfig, metric: Metric, trial: Trial) -> None:
    """Refuses a trial that could not be compared with the others."""
    run = trial.run
    if not run.data.validation:
        raise ConfigError(
            f"data.validation = []: {trial.name} would measure nothing to compare it by; name a"
            " data set"
        )
    measured = [LOSS, NLL, *map(loss_of, run.prompt_names())]
    task = metric.name.partition("/")[0]
    if task in task_names() and metric.name not in measured:
        if task not in run.training.answered_tasks():
            raise ConfigError(
                f"metric = {metric.name!r}: {trial.name} would not measure it; name {task} in"
                " training.answer_tasks"
            )
    elif metric.name not in measured:
        raise ConfigError(
            f"metric = {metric.name!r}: must be one of {', '.join(measured)}, or a metric of a task"
            f" ({', '.join(task_names())})"
        )
    if config.scheduler != "asha":
        return
    for path in ("max_steps", "validate_every_steps"):
        if getattr(run.training, path) is None:
            raise ConfigError(
                f"training.{path} = null: scheduler = asha needs a number, to compare {trial.name}"
                " on its way"
            )


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
