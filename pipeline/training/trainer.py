"""The training loop: a function from configuration, data and seed to what is trained.

Every rank runs it. Ranks meet at one small all-reduce before each step, which counts the tokens of
the global batch and carries a request to stop, so that all of them act on it at the same step.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from model.checkpoint import fingerprint
from pipeline.config import RunConfig
from pipeline.errors import EXIT_INTERRUPTED, CheckpointError, ConfigError, TrainingError
from pipeline.training.checkpoint import (
    Best,
    CheckpointFolder,
    RunState,
    read_state,
    write_best,
)
from pipeline.training.data import Batch
from pipeline.training.engine import Engine, join_world, leave_world
from pipeline.training.hooks import Hook, MetricsFile
from pipeline.training.inputs import open_inputs
from pipeline.training.objective import objective_of
from pipeline.training.progress import ProgressBar
from pipeline.training.run_folder import INTERRUPTED, check_folder, locked, run_folder
from pipeline.training.schedule import learning_rate
from pipeline.training.selection import Selection
from pipeline.training.signals import StopRequest
from pipeline.training.step import NotFinite, seed_step, train_step
from pipeline.training.subject import batch_statistics, build_model, frozen_fingerprint
from pipeline.training.summary import TrainingResult, write_summary
from pipeline.training.validation import Validator
from pipeline.training.window import Window
from pipeline.training.world import World, ranks_here


def train(config: RunConfig, hooks: Sequence[Hook] = (), *, resume: bool = False) -> TrainingResult:
    """Trains, as one rank of those that the launcher started.

    Args:
        config: The run.
        hooks: Told on rank 0 what happens.
        resume: Continue from the newest checkpoint of the run's folder, if it has one.

    Raises:
        ConfigError: the run's folder or settings cannot be used.
        DataError: data are missing or damaged.
        CheckpointError: the base or a checkpoint is missing, damaged or does not fit.
        TrainingError: the run broke; with exit_code 75 it was asked to stop and can be resumed.
    """
    check_folder(config, resume)
    _set_threads(config.engine.threads_per_process)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        world = join_world(config)
        if world.leads:
            stack.enter_context(locked(config))
        result = _Run(config, hooks if world.leads else (), world, stop, stack).train(resume)
        world.barrier()
    leave_world()
    return result


def total_steps(config: RunConfig, epoch_length: int, global_batch: int) -> int:
    """Optimizer steps of a run; known before its first."""
    if config.training.max_steps is not None:
        return config.training.max_steps
    return max(1, round((config.training.epochs or 1.0) * epoch_length / global_batch))


class _Run:
    """One rank's part of a run."""

    def __init__(
        self,
        config: RunConfig,
        hooks: Sequence[Hook],
        world: World,
        stop: StopRequest,
        stack: contextlib.ExitStack,
    ) -> None:
        self.config, self.world, self.stop = config, world, stop
        self.run_dir = run_folder(config)
        self.started = time.perf_counter()
        model = build_model(config)
        inputs = open_inputs(config, model.base.config, world, stack)
        self.loader, self.validator = inputs.loader, inputs.validator
        self.epoch_length = inputs.epoch_length
        self.checkpoints = CheckpointFolder(self.run_dir, world, config.training.keep_last)
        base_fingerprint = fingerprint(model.base)
        self.frozen = frozen_fingerprint(model, base_fingerprint)
        self.state = RunState(
            step=0,
            total_steps=total_steps(config, inputs.epoch_length, self.loader.global_batch),
            base_fingerprint=base_fingerprint,
            datasets=inputs.datasets,
            ranks=world.size,
            zero_stage=config.engine.zero_stage,
            seconds=0.0,
        )
        self.engine = Engine(model, config, world, lambda: build_model(config))
        self.statistics = batch_statistics(model.base)
        self.hooks = list(hooks)
        self.selection = Selection(config.training)
        self.window = Window(world)
        self.last_norm: float | None = None

    def train(self, resume: bool) -> TrainingResult:
        """Runs from the newest checkpoint, or from the start, to the end."""
        if resume:
            self._continue()
        before = self.state.base_fingerprint
        first, total = self.state.step, self.state.total_steps
        if self.world.leads:
            self.hooks.insert(0, MetricsFile(first))
        for hook in self.hooks:
            hook.on_start(self.run_dir, self.config)
        self.seconds_before = self.state.seconds
        self.started = time.perf_counter()
        self.window.open()
        self.engine.train()
        name, leads = self.config.name, self.world.leads
        with ProgressBar(name, total, first, shown=leads) as self.bar:
            for batches in self.loader.steps(first, total):
                if self.selection.gives_up(self.state):
                    break
                self._step(batches)
                self.bar.advance()
                self._after_step()
            if self._stopped_early():
                self.bar.say(
                    f"ends at step {self.state.step}: no better {self.selection.metric} in"
                    f" {self.state.stale} validations"
                )
        return self._finish(before)

    def _continue(self) -> None:
        place = self.checkpoints.latest()
        if place is None:
            return
        saved, now = read_state(place), self.state
        if saved.base_fingerprint != now.base_fingerprint:
            raise CheckpointError(
                f"base.path = {self.config.base.path!r} is {now.base_fingerprint}, but {place} was"
                f" made with {saved.base_fingerprint}"
            )
        for what in ("datasets", "ranks", "zero_stage", "total_steps"):
            if getattr(saved, what) != getattr(now, what):
                raise ConfigError(
                    f"{place} cannot be continued: {what} was {getattr(saved, what)} and is now"
                    f" {getattr(now, what)}"
                )
        self.checkpoints.load(self.engine, place)
        self.state = saved

    def _step(self, batches: Sequence[Batch]) -> None:
        config, step = self.config, self.state.step
        objective = objective_of(config.training, step)
        counted = sum(objective.tokens(batch) for batch in batches)
        tokens, stopping = self.world.total([float(counted), float(self.stop.requested)])
        if stopping:
            self._interrupt()
        seed_step(config.seed, step, self.world.rank)
        try:
            self.last_norm = train_step(
                self.engine,
                batches,
                lr=learning_rate(
                    config.schedule, config.optimizer.lr, step, self.state.total_steps
                ),
                objective=objective,
                global_tokens=tokens,
                sums=self.window.sums,
                step=step,
                world=self.world,
            )
        except NotFinite as error:
            error.write(self.run_dir)
            raise
        # Each rank's BatchNorm saw its own images; their mean keeps one model.
        self.world.average_(self.statistics)
        self.state = replace(self.state, step=step + 1)

    def _after_step(self) -> None:
        training, step = self.config.training, self.state.step
        last = step == self.state.total_steps
        if step % training.log_every_steps == 0 or last:
            self._log()
        if self.validator and (last or _due(step, training.validate_every_steps)):
            with self.window.paused():
                self._validate(self.validator)
        if last or self._stopped_early() or _due(step, training.save_every_steps):
            self._save()

    def _stopped_early(self) -> bool:
        unfinished = self.state.step < self.state.total_steps
        return unfinished and self.selection.gives_up(self.state)

    def _log(self) -> None:
        settings, step = self.config, self.state.step
        metrics = self.window.close(self.loader.waited_s)
        metrics["train/lr"] = learning_rate(
            settings.schedule, settings.optimizer.lr, step - 1, self.state.total_steps
        )
        metrics["train/epoch"] = step * self.loader.global_batch / self.epoch_length
        if self.last_norm is not None:
            metrics["train/grad_norm"] = self.last_norm
        for hook in self.hooks:
            hook.on_log(step, metrics)
        samples_left = (self.state.total_steps - step) * self.loader.global_batch
        self.bar.report(step, metrics, samples_left / metrics["train/samples_per_s"])

    def _validate(self, validator: Validator) -> None:
        with self.engine.whole_model(averaged=True) as model:
            metrics = validator.measure(model)
            judged = self.selection.judged(self.state, metrics)
            best, better = judged.best, judged.best is not self.state.best
            if best is not None and better and self.world.leads:
                write_best(self.run_dir, model, best, self.config.base.path)
            validator.draw(model, self.state.step)
        self.state = judged
        for hook in self.hooks:
            hook.on_validation(self.state.step, metrics)
        told = ", ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()))
        self.bar.say(f"step {self.state.step}: {told}{' (best)' if better else ''}")

    def _save(self) -> None:
        with self.window.paused():
            self.checkpoints.save(self.engine, self._timed_state())

    def _timed_state(self) -> RunState:
        seconds = self.seconds_before + time.perf_counter() - self.started
        return replace(self.state, seconds=round(seconds, 3))

    def _interrupt(self) -> None:
        """Saves and leaves, at the same step on all ranks."""
        self._save()
        step = self.state.step
        if self.world.leads:
            (self.run_dir / INTERRUPTED).write_text(f"{step}\n", encoding="utf-8")
        self.world.barrier()
        raise TrainingError(
            f"asked to stop; step {step} of {self.state.total_steps} is saved, --resume continues",
            exit_code=EXIT_INTERRUPTED,
        )

    def _finish(self, before: str) -> TrainingResult:
        with self.engine.whole_model() as model:
            after = fingerprint(model.base)
            if frozen_fingerprint(model, after) != self.frozen:
                raise TrainingError(f"the frozen base changed: {before} became {after}")
            sizes = model.parameter_counts()
        if self.validator is None:
            # Nothing was compared: the last is the best there is.
            last = Best(step=self.state.step, value=0.0, metrics={})
            with self.engine.whole_model(averaged=True) as model:
                if self.world.leads:
                    write_best(self.run_dir, model, last, self.config.base.path)
        result = TrainingResult(
            output_dir=self.run_dir,
            best_metrics=self.state.best.metrics if self.state.best else {},
            final_step=self.state.step,
            trainable_parameters=sizes.trainable,
            base_parameters=sizes.base,
            fingerprint_before=before,
            fingerprint_after=after,
            seconds=self._timed_state().seconds,
            stopped_early=self._stopped_early(),
        )
        if self.world.leads:
            write_summary(result)
        for hook in self.hooks:
            hook.on_end(result)
        return result


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _set_threads(wanted: int | None) -> None:
    torch.set_num_threads(wanted or max(1, len(os.sched_getaffinity(0)) // ranks_here()))
