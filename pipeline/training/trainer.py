"""The training loop: a function from configuration, data and seed to what is trained.

Every rank runs it. Ranks meet at one small all-reduce before each step, which counts the tokens of
the global batch and carries a request to stop, so that all of them act on it at the same step.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from model.checkpoint import fingerprint
from model.tuning import TunedModel
from pipeline.config import RunConfig
from pipeline.config_tree import plain
from pipeline.errors import EXIT_INTERRUPTED, TrainingError
from pipeline.features.opening import frozen_trunk
from pipeline.tracking.secrets import without_passwords
from pipeline.training.backend import placement_of, start_engine
from pipeline.training.checkpoint import Best, RunState
from pipeline.training.checkpoint_folder import CheckpointFolder, checkpoints_in
from pipeline.training.cut_texts import CutReport
from pipeline.training.data import Batch
from pipeline.training.flops import StepFlops, peak_flops
from pipeline.training.hooks import Hook
from pipeline.training.improved import write_improved
from pipeline.training.initial import set_initial_values
from pipeline.training.inputs import open_inputs
from pipeline.training.objective import objective_of
from pipeline.training.peers import Peers, telling_fates
from pipeline.training.process_group import join_world, leave_world
from pipeline.training.prompt_losses import count_tokens
from pipeline.training.prompt_selection import selection_of
from pipeline.training.reporting import Reporter
from pipeline.training.resume import Resume, continuation
from pipeline.training.run_folder import INTERRUPTED, check_folder, locked, run_folder
from pipeline.training.schedule import learning_rate, total_steps
from pipeline.training.signals import StopRequest
from pipeline.training.spans import COLLECTIVE, DATA_WAIT, SAVING, VALIDATION, Spans
from pipeline.training.step import NotFinite, seed_step, train_step
from pipeline.training.subject import (
    batch_statistics,
    build_model,
    frozen_fingerprint,
    moved_buffers,
)
from pipeline.training.summary import TrainingResult, write_summary
from pipeline.training.validation import Validator
from pipeline.training.watchdog import STACKS_SIGNAL, Watchdog
from pipeline.training.window import Window
from pipeline.training.world import World, environment_rank, threads_of_a_rank


def train(
    config: RunConfig,
    hooks: Sequence[Hook] = (),
    *,
    resume: Resume | None = None,
    stop: StopRequest | None = None,
) -> TrainingResult:
    """Trains, as one rank of those that the launcher started.

    Args:
        config: The run.
        hooks: Told on rank 0 what happens.
        resume: Continue from a checkpoint of the run's folder, if it has one; None begins a run.
        stop: Takes requests to stop already; None takes them from here to the end.

    Raises:
        ConfigError: the run's folder or settings cannot be used.
        DataError: data are missing or damaged.
        CheckpointError: the base or a checkpoint is missing, damaged or does not fit.
        TrainingError: the run broke; with exit_code 75 it was asked to stop and can be resumed.
    """
    _, ranks, _ = environment_rank() or (0, 1, 0)
    check_folder(config, ranks, resume)
    torch.set_num_threads(threads_of_a_rank(config.engine.threads_per_process))
    with contextlib.ExitStack() as stack:
        stop = stop or stack.enter_context(StopRequest())
        world = join_world(config)
        peers = Peers.meet(world)
        with telling_fates(world, peers):
            if world.leads:
                stack.enter_context(locked(config))
            run = _Run(config, hooks, world, stop, stack)
            run.watch(stack, peers)
            result = run.train(resume)
            world.barrier()
    leave_world()
    return result


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
        self.placement = placement_of(config)
        model = self.model = build_model(config, self.placement.settle)
        trunk = frozen_trunk(config, model, self.placement.whole)
        inputs = open_inputs(config, model.base.config, world, stack, trunk)
        self.loader, self.validator = inputs.loader, inputs.validator
        self.epoch_length = inputs.epoch_length
        self.checkpoints = stack.enter_context(
            CheckpointFolder(self.run_dir, world, config.training)
        )
        base_fingerprint = fingerprint(model.base, whole=self.placement.whole)
        self.frozen = frozen_fingerprint(model, base_fingerprint, self.placement.whole)
        self.state = RunState(
            step=0,
            total_steps=total_steps(config.training, inputs.epoch_length, self.loader.global_batch),
            base_fingerprint=base_fingerprint,
            datasets=inputs.datasets,
            ranks=world.size,
            zero_stage=config.engine.zero_stage,
            global_batch=self.loader.global_batch,
            seconds=0.0,
            config=plain(without_passwords(config)),
        )
        if not checkpoints_in(self.checkpoints.folder):
            set_initial_values(model, config, self.loader, base_fingerprint)
        self.engine = start_engine(model, config, world, lambda: build_model(config))
        self.statistics = batch_statistics(model.base)
        self.buffers = moved_buffers(model)
        self.reporter = Reporter(config, hooks, leads=world.leads)
        self.selection = selection_of(config)
        self.spans = Spans()
        # Layers that are compiled are left alone: counting would run them uncompiled.
        self.flops = StepFlops(enabled=not config.engine.compile)
        self.window = Window(world, self.spans, peak_flops(config.engine, world.device))
        self.cut_texts = CutReport(inputs.loader.cut_texts, config.data, world)
        self.last_norm: float | None = None

    def watch(self, stack: contextlib.ExitStack, peers: Peers) -> None:
        """Has this rank watched as long as the stack is open."""
        self.watchdog = stack.enter_context(
            Watchdog(
                limit_s=self.config.training.step_timeout_s,
                rank=self.world.rank,
                peers=peers,
                run_dir=self.run_dir,
                doing=lambda: self.spans.doing,
            )
        )
        self.stop.listener.on(STACKS_SIGNAL, self.watchdog.write_stacks)

    def train(self, resume: Resume | None) -> TrainingResult:
        """Runs from a checkpoint, or from the start, to the end."""
        if resume is not None:
            self._continue(resume)
        before = self.state.base_fingerprint
        first, total = self.state.step, self.state.total_steps
        # Of two ranks, a request would end one that is here and only be noted by the other.
        self.world.barrier()
        self.stop.run_begins()
        bar = self.reporter.start(self.run_dir, first, total)
        self.seconds_before = self.state.seconds
        self.started = time.perf_counter()
        self.window.open()
        self.watchdog.progressed(first)
        self.engine.train()
        with bar:
            for batches in self._batches(first, total):
                if self.selection.gives_up(self.state):
                    break
                self._step(batches)
                bar.advance()
                self.watchdog.progressed(self.state.step)
                self._after_step()
            if self._stopped_early():
                bar.say(
                    f"ends at step {self.state.step}: no better {self.selection.metric} in"
                    f" {self.state.stale} validations"
                )
        self.stop.run_ended()
        return self._finish(before)

    def _batches(self, first: int, total: int) -> Iterator[list[Batch]]:
        steps = self.loader.steps(first, total)
        while True:
            with self.spans(DATA_WAIT):
                batches = next(steps, None)
            if batches is None:
                return
            yield batches

    def _continue(self, resume: Resume) -> None:
        found = continuation(self.run_dir, self.config, self.state, resume, told=self.world.leads)
        if found is not None:
            self.checkpoints.load(self.engine, self.buffers, found.place, found.tensors)
            self.state = found.state

    def _step(self, batches: Sequence[Batch]) -> None:
        self.checkpoints.check()
        config, step = self.config, self.state.step
        objective = objective_of(config.training, step)
        counts = count_tokens(objective, batches, len(config.prompt_names()) or 1)
        with self.spans(COLLECTIVE):
            *tokens, stopping = self.world.total([*counts, float(self.stop.requested)])
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
                spans=self.spans,
                flops=self.flops,
                step=step,
                world=self.world,
            )
        except NotFinite as error:
            error.write(self.run_dir)
            raise
        # Each rank's BatchNorm saw its own images; their mean keeps one model.
        with self.spans(COLLECTIVE):
            self.world.average_(self.statistics)
        self.state = replace(self.state, step=step + 1)

    def _after_step(self) -> None:
        training, step = self.config.training, self.state.step
        last = step == self.state.total_steps
        if step % training.log_every_steps == 0 or last:
            self._log()
        if self.validator and (last or _due(step, training.validate_every_steps)):
            with self.window.paused(), self.spans(VALIDATION):
                self._validate(self.validator)
            self.watchdog.progressed()
        if last or self._stopped_early() or _due(step, training.save_every_steps):
            self._save()

    def _stopped_early(self) -> bool:
        unfinished = self.state.step < self.state.total_steps
        return unfinished and self.selection.gives_up(self.state)

    def _log(self) -> None:
        settings, step = self.config, self.state.step
        more = {
            "train/lr": learning_rate(
                settings.schedule, settings.optimizer.lr, step - 1, self.state.total_steps
            ),
            "train/epoch": step * self.loader.global_batch / self.epoch_length,
        }
        if self.last_norm is not None:
            more["train/grad_norm"] = self.last_norm
        more |= self.cut_texts.report(self.reporter.bar.say, last=step == self.state.total_steps)
        samples_left = (self.state.total_steps - step) * self.loader.global_batch
        self.reporter.log(step, self.window.close(), more, samples_left)

    def _validate(self, validator: Validator) -> None:
        def look(model: TunedModel) -> dict[str, float]:
            measured = validator.measure(model, self.watchdog.progressed)
            validator.draw(model, self.state.step)
            return measured

        metrics = self.engine.measure(look)
        judged = self.selection.judged(self.state, metrics)
        better = self.selection.improved(self.state, judged)
        if better:
            self._write_improved(better)
        self.state = judged
        self.reporter.validated(self.state.step, metrics, better)

    def _write_improved(self, improved: Mapping[str | None, Best]) -> None:
        with self.engine.whole_model() as model:
            if self.world.leads:
                write_improved(self.run_dir, model, improved, self.config)

    def _save(self) -> None:
        with self.window.paused(), self.spans(SAVING):
            self.checkpoints.save(self.engine, self.buffers, self._timed_state())
        self.watchdog.progressed()

    def _timed_state(self) -> RunState:
        seconds = self.seconds_before + time.perf_counter() - self.started
        return replace(self.state, seconds=round(seconds, 3))

    def _interrupt(self) -> None:
        """Saves and leaves, at the same step on all ranks."""
        self._save()
        self.checkpoints.wait()
        step = self.state.step
        if self.world.leads:
            (self.run_dir / INTERRUPTED).write_text(f"{step}\n", encoding="utf-8")
        self.world.barrier()
        raise TrainingError(
            f"asked to stop; step {step} of {self.state.total_steps} is saved, --resume continues",
            exit_code=EXIT_INTERRUPTED,
        )

    def _finish(self, before: str) -> TrainingResult:
        self.checkpoints.wait()
        model, whole, sizes = self.model, self.placement.whole, self.engine.sizes
        after = fingerprint(model.base, whole=whole)
        if frozen_fingerprint(model, after, whole) != self.frozen:
            raise TrainingError(f"the frozen base changed: {before} became {after}")
        if self.validator is None:
            # Nothing was compared: the last is the best there is.
            last = Best(step=self.state.step, value=0.0, metrics={})
            self._write_improved(dict.fromkeys(self.config.prompt_names() or (None,), last))
        result = TrainingResult(
            output_dir=self.run_dir,
            best_metrics=self.selection.best_metrics(self.state),
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
        self.reporter.end(result)
        return result


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
