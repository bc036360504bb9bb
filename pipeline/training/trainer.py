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
from torch import nn

from model.checkpoint import TOKENIZER_FILE, fingerprint, load_base, load_config, resolve_base
from model.ofa.model import OFA
from model.tokenizer import OFATokenizer
from model.tuning import TunedModel, build_tuned_model
from pipeline.config import RunConfig
from pipeline.errors import EXIT_INTERRUPTED, CheckpointError, ConfigError, TrainingError
from pipeline.training.checkpoint import (
    Best,
    CheckpointFolder,
    RunState,
    read_state,
    write_best,
)
from pipeline.training.data import Batch, Collator
from pipeline.training.engine import Engine, join_world, leave_world
from pipeline.training.hooks import Hook, MetricsFile
from pipeline.training.loader import BatchMaker, Loader, build_order, check_cache, open_data_sets
from pipeline.training.order import SampleOrder
from pipeline.training.progress import ProgressBar
from pipeline.training.run_folder import INTERRUPTED, check_folder, locked, run_folder
from pipeline.training.schedule import learning_rate
from pipeline.training.signals import StopRequest
from pipeline.training.step import StepSums, seed_step, train_step
from pipeline.training.summary import TrainingResult, write_summary
from pipeline.training.validation import LOSS, Validator
from pipeline.training.world import World


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


def total_steps(config: RunConfig, order: SampleOrder, global_batch: int) -> int:
    """Optimizer steps of a run; known before its first."""
    if config.training.max_steps is not None:
        return config.training.max_steps
    return max(1, round((config.training.epochs or 1.0) * order.epoch_length / global_batch))


def build_model(config: RunConfig) -> TunedModel:
    """The base with what is tuned, on the CPU, the same on every rank.

    Raises:
        CheckpointError: the base is missing or damaged.
        ConfigError: what is tuned does not fit the base.
    """
    torch.manual_seed(config.seed)
    if config.base.random_init:
        base = OFA(load_config(config.base.path))
        base.initialise()
    else:
        base = load_base(config.base.path)
    base.regularisation.dropout = config.training.dropout
    base.regularisation.drop_path = config.training.drop_path
    try:
        return build_tuned_model(base, config.tuning)
    except ValueError as error:
        raise ConfigError(str(error)) from error


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
        base_config = model.base.config
        tokenizer = OFATokenizer.from_file(resolve_base(config.base.path) / TOKENIZER_FILE)
        image_size = config.data.image_size or base_config.image_size
        data = config.data
        if not data.train:
            raise ConfigError("data.train names no data set to learn from")
        readers = [stack.enter_context(reader) for reader in open_data_sets(data.train, data)]
        check_cache(readers, data, max(1, world.size // _ranks_here()))
        order = build_order(readers, data, config.seed)
        collate = Collator(
            tokenizer,
            base_config,
            image_size,
            max_source_length=data.max_source_length,
            max_target_length=data.max_target_length,
        )
        if data.streams % world.size:
            raise ConfigError(
                f"data.streams = {data.streams}: not a multiple of {world.size} ranks"
            )
        self.loader = stack.enter_context(
            Loader(
                order,
                BatchMaker(readers, collate, config.seed),
                rank=world.rank,
                ranks=world.size,
                batch_size=config.training.batch_size_per_rank,
                accumulation=config.training.gradient_accumulation,
                workers=data.loader_workers,
                kind=data.loader,
                timeout_s=data.loader_timeout_s,
            )
        )
        self.validator = None
        if data.validation:
            held_out = open_data_sets(data.validation, data)
            for reader in held_out:
                stack.enter_context(reader)
            self.validator = Validator(held_out, tokenizer, base_config, config, image_size, world)
        self.epoch_length = order.epoch_length
        self.checkpoints = CheckpointFolder(self.run_dir, world, config.training.keep_last)
        base_fingerprint = fingerprint(model.base)
        self.frozen = _frozen_fingerprint(model, base_fingerprint)
        self.state = RunState(
            step=0,
            total_steps=total_steps(config, order, self.loader.global_batch),
            base_fingerprint=base_fingerprint,
            datasets={str(reader.folder): reader.manifest.digest for reader in readers},
            ranks=world.size,
            zero_stage=config.engine.zero_stage,
            seconds=0.0,
        )
        self.engine = Engine(model, config, world, lambda: build_model(config))
        self.statistics = _batch_statistics(model.base)
        self.hooks = list(hooks)
        self.sums = StepSums()
        self.window_start, self.window_waited = self.started, 0.0
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
        self.started = self.window_start = time.perf_counter()
        self.engine.train()
        name, leads = self.config.name, self.world.leads
        with ProgressBar(name, total, first, shown=leads) as self.bar:
            for batches in self.loader.steps(first, total):
                self._step(batches)
                self.bar.advance()
                self._after_step()
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
        tokens, stopping = self.world.total(
            [float(sum(batch.tokens for batch in batches)), float(self.stop.requested)]
        )
        if stopping:
            self._interrupt()
        seed_step(config.seed, step, self.world.rank)
        self.last_norm = train_step(
            self.engine,
            batches,
            lr=learning_rate(config.schedule, config.optimizer.lr, step, self.state.total_steps),
            label_smoothing=config.training.label_smoothing,
            global_tokens=tokens,
            sums=self.sums,
            step=step,
            world=self.world,
        )
        # Each rank's BatchNorm saw its own images; their mean keeps one model.
        self.world.average_(self.statistics)
        self.state = replace(self.state, step=step + 1)

    def _after_step(self) -> None:
        training, step = self.config.training, self.state.step
        last = step == self.state.total_steps
        if step % training.log_every_steps == 0 or last:
            self._log()
        if self.validator and (last or _due(step, training.validate_every_steps)):
            self._validate(self.validator)
        if last or _due(step, training.save_every_steps):
            self._save()

    def _log(self) -> None:
        sums, now = self.sums, time.perf_counter()
        loss, nll, tokens, samples, waited = self.world.total(
            [sums.loss, sums.nll, sums.tokens, sums.samples, self.loader.waited_s]
        )
        elapsed, step = now - self.window_start, self.state.step
        share = (waited - self.window_waited) / self.world.size / elapsed
        settings = self.config
        metrics = {
            "train/loss": loss / tokens,
            "train/nll": nll / tokens,
            "train/lr": learning_rate(
                settings.schedule, settings.optimizer.lr, step - 1, self.state.total_steps
            ),
            "train/samples_per_s": samples / elapsed,
            "train/tokens_per_s": tokens / elapsed,
            "train/data_wait_share": share,
            "train/epoch": step * self.loader.global_batch / self.epoch_length,
        }
        if self.last_norm is not None:
            metrics["train/grad_norm"] = self.last_norm
        for hook in self.hooks:
            hook.on_log(step, metrics)
        left = (self.state.total_steps - step) * self.loader.global_batch / (samples / elapsed)
        self.bar.report(step, metrics, left)
        self.sums, self.window_waited = StepSums(), waited
        self.window_start = time.perf_counter()

    def _validate(self, validator: Validator) -> None:
        began = time.perf_counter()
        wanted = self.config.training.best_metric
        with self.engine.whole_model() as model:
            metrics = validator.measure(model)
            if wanted is not None and wanted not in metrics:
                known = ", ".join(sorted(metrics))
                raise ConfigError(f"training.best_metric = {wanted!r}: there is only {known}")
            value = metrics[wanted or LOSS]
            best = self.state.best
            better = best is None or (value > best.value if wanted else value < best.value)
            if better:
                best = Best(step=self.state.step, value=value, metrics=metrics)
                if self.world.leads:
                    write_best(self.run_dir, model, best, self.config.base.path)
        self.state = replace(self.state, best=best)
        for hook in self.hooks:
            hook.on_validation(self.state.step, metrics)
        told = ", ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()))
        self.bar.say(f"step {self.state.step}: {told}{' (best)' if better else ''}")
        # Speed is that of training alone.
        self.window_start += time.perf_counter() - began

    def _save(self) -> None:
        began = time.perf_counter()
        self.checkpoints.save(self.engine, self._timed_state())
        self.window_start += time.perf_counter() - began

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
            if _frozen_fingerprint(model, after) != self.frozen:
                raise TrainingError(f"the frozen base changed: {before} became {after}")
            sizes = model.parameter_counts()
            if self.validator is None and self.world.leads:
                # Nothing was compared: the last is the best there is.
                last = Best(step=self.state.step, value=0.0, metrics={})
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
        )
        if self.world.leads:
            write_summary(result)
        for hook in self.hooks:
            hook.on_end(result)
        return result


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _frozen_fingerprint(model: TunedModel, whole: str) -> str:
    """The fingerprint of all that training must leave alone; whole is that of the whole base."""
    if model.freezes_base:
        return whole
    return fingerprint(model.base, without=model.trained_in_base())


def _batch_statistics(base: OFA) -> list[torch.Tensor]:
    """The running statistics that training moves."""
    if not base.batch_norm_trains:
        return []
    norms = [module for module in base.modules() if isinstance(module, nn.BatchNorm2d)]
    found = [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var)]
    return [tensor for tensor in found if tensor is not None]


def _set_threads(wanted: int | None) -> None:
    torch.set_num_threads(wanted or max(1, len(os.sched_getaffinity(0)) // _ranks_here()))


def _ranks_here() -> int:
    """Ranks on this machine."""
    return int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)
