"""SweepConfig: what is varied, how trials are chosen, and when one is given up."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.config_tree import build
from pipeline.errors import ConfigError

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_OURS = ("name", "output_dir", "tracking")
"""Settings that the sweep itself decides for each trial."""


@dataclass(frozen=True, kw_only=True)
class RangeConfig:
    """Numbers that random search draws from."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Draw evenly over the logarithm: as many values between 0.001 and 0.01 as up to 0.1."""
    int: bool = False
    """Draw whole numbers."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"low = {self.low}: must be a number below high = {self.high}")
        if self.log and self.low <= 0:
            raise ConfigError(f"low = {self.low}: must be above 0 with log = true")
        if self.int and not (self.low.is_integer() and self.high.is_integer()):
            raise ConfigError(f"low = {self.low}: low and high must be whole with int = true")


@dataclass(frozen=True, kw_only=True)
class AshaConfig:
    """Successive halving without waiting (https://arxiv.org/abs/1810.05934)."""

    grace_steps: int = 100
    """Optimizer steps before which no trial is stopped; the first rung."""
    reduction_factor: float = 3.0
    """Of the trials that reach a rung, the best one in so many goes on; the next rung is as many
    times further."""

    def __post_init__(self) -> None:
        if self.grace_steps < 1:
            raise ConfigError(f"grace_steps = {self.grace_steps}: must be 1 or more")
        if not 1 < self.reduction_factor < math.inf:
            raise ConfigError(f"reduction_factor = {self.reduction_factor}: must be above 1")


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """What one trial takes of a machine."""

    cpus: int | None = None
    """CPU cores; None takes engine.processes times engine.threads_per_process, or one core a
    process."""
    gpus: int = 0
    """GPUs; for training on GPUs, one a process."""

    def __post_init__(self) -> None:
        if self.cpus is not None and self.cpus < 1:
            raise ConfigError(f"cpus = {self.cpus}: must be 1 or more, or null")
        if self.gpus < 0:
            raise ConfigError(f"gpus = {self.gpus}: must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A sweep over settings of a training run."""

    name: str
    """Name of the sweep: of its folder beside other runs, and of its parent run in MLflow."""
    recipe: str | None = None
    """Training recipe (YAML) that the trials share; None when `settings` says all."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the training run, over the recipe, nested as in a recipe."""
    space: dict[str, Any]
    """What trials differ in: a dotted setting of the training run to a list of values, or to a
    range (`low`, `high`, `log`, `int`)."""
    search: Literal["grid", "random"] = "grid"
    """Every combination of the lists, or random draws."""
    samples: int | None = None
    """Trials that random search draws; no two are equal."""
    seed: int = 0
    """Seed of the draws."""
    metric: str | None = None
    """Validation metric that trials are compared by; None takes the recipe's training.best_metric,
    else the headline metric of the one task in training.answer_tasks, else `validation/loss`."""
    mode: Literal["min", "max"] | None = None
    """Which values of it are better; None knows it: smaller losses, larger other metrics."""
    scheduler: Literal["none", "asha"] = "none"
    """Whether trials that fall behind are stopped early."""
    asha: AshaConfig = field(default_factory=AshaConfig)
    """When they are."""
    concurrency: int = 1
    """Trials that run at the same time, if the machines have room for them."""
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    """What each of them takes."""
    max_failures: int = 0
    """How often a trial that broke, or lost its machine, is continued from its checkpoint before it
    counts as failed."""
    ray_address: str | None = None
    """Ray cluster that runs the trials, HOST:PORT; None takes RAY_ADDRESS, else this machine."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ConfigError(
                f"name = {self.name!r}: must be a folder's name, without '/' or a dot in front"
            )
        if _RUN_ID.fullmatch(self.name):
            raise ConfigError(f"name = {self.name!r}: looks like the id of an MLflow run")
        if self.concurrency < 1:
            raise ConfigError(f"concurrency = {self.concurrency}: must be 1 or more")
        if self.max_failures < 0:
            raise ConfigError(f"max_failures = {self.max_failures}: must be 0 or more")
        self._check_space()
        self._check_search()

    def _check_space(self) -> None:
        if not self.space:
            raise ConfigError("space = {}: must name at least one setting to vary")
        for path, values in self.space.items():
            if path.split(".")[0] in _OURS:
                raise ConfigError(f"space.{path}: is set by the sweep for each trial")
            if isinstance(values, list):
                known = [repr(value) for value in values]
                if not values or len(set(known)) < len(known):
                    raise ConfigError(f"space.{path} = {values}: must list different values")
            elif not isinstance(values, dict):
                raise ConfigError(
                    f"space.{path} = {values!r}: must be a list of values, or a range with low and"
                    " high"
                )
        if self.search == "grid" and self.ranges():
            path = next(iter(self.ranges()))
            raise ConfigError(f"space.{path}: a range needs search = random, not grid")

    def _check_search(self) -> None:
        if self.search == "grid" and self.samples is not None:
            raise ConfigError(f"samples = {self.samples}: belongs to search = random")
        if self.search == "random" and (self.samples is None or self.samples < 1):
            raise ConfigError(f"samples = {self.samples}: search = random needs 1 or more")
        if self.scheduler == "none" and self.asha != AshaConfig():
            raise ConfigError("asha: belongs to scheduler = asha, which is none")

    def ranges(self) -> dict[str, RangeConfig]:
        """The settings that are drawn from ranges.

        Raises:
            ConfigError: a range says something that it cannot.
        """
        return {
            path: build(RangeConfig, values, f"space.{path}")
            for path, values in self.space.items()
            if isinstance(values, dict)
        }
