"""A run, event by event: ranks in lockstep, loaders ahead of them, a checkpoint behind, failures.

Ranks meet in every step, so one process stands for all of them and a step takes as long as its
slowest rank. What is not in lockstep has processes of its own: each node's loader, the store, the
thread that writes a checkpoint, and the next failure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import simpy
from simpy.events import Event

from benchmarks.scaling import costs
from benchmarks.scaling.assumptions import Assumptions
from benchmarks.scaling.costs import Cluster
from benchmarks.scaling.loading import NodeLoader, Process, open_store
from benchmarks.scaling.sizes import ModelSize

COMPUTE, SMALL_BATCHES = "compute", "small batches"
STRAGGLERS, COUNTING = "stragglers", "counting"
GRADIENTS, GATHERS, DATA = "gradients", "gathers", "data"
VALIDATION, SAVING, REPORTS = "validation", "saving", "reports"
START_END, FAILURES = "start and end", "failures"
KINDS = (
    *(COMPUTE, SMALL_BATCHES, STRAGGLERS, COUNTING, GRADIENTS, GATHERS),
    *(DATA, VALIDATION, SAVING, REPORTS, START_END, FAILURES),
)
"""All that a second of a run can go to."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run."""

    gpus: int
    global_batch: int
    wall_s: float
    """From the scheduler's decision to the last rank's end."""
    samples_per_s: float
    """Of all GPUs, over the whole of that time."""
    efficiency: float
    """What one GPU alone would compute for these samples, as a share of the time of all GPUs."""
    failures: int
    shares: dict[str, float]
    """Of the time, by kind."""


def simulate(assumed: Assumptions, gpus: int, size: ModelSize) -> Outcome:
    """Simulate one run from start to end.

    Raises:
        ValueError: so many GPUs cannot be.
    """
    return _Run(Cluster(assumed, gpus), size).outcome()


class _Run:
    def __init__(self, cluster: Cluster, size: ModelSize) -> None:
        assumed = cluster.assumed
        self.cluster, self.assumed, self.size = cluster, assumed, size
        self.costs = costs.step_costs(cluster, size)
        alone = costs.step_costs(Cluster(assumed, 1), size)
        self.ideal_s = self.costs.samples / cluster.gpus * alone.compute_s / alone.samples
        self.env = simpy.Environment()
        self.store = open_store(self.env, assumed)
        seeds = np.random.SeedSequence(assumed.seed).spawn(3)
        self.speeds, self.shards, self.breaks = (np.random.default_rng(seed) for seed in seeds)
        self.slowness = _slowness(cluster)
        self.step = self.furthest = self.saved = self.failures = 0
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self.loaders: list[NodeLoader] = []
        self.writer: simpy.Process | None = None

    def outcome(self) -> Outcome:
        self.ranks = self.env.process(self._life())
        self.env.run(until=self.ranks)
        wall, samples = float(self.env.now), self.assumed.steps * self.costs.samples
        return Outcome(
            gpus=self.cluster.gpus,
            global_batch=self.costs.samples,
            wall_s=wall,
            samples_per_s=samples / wall,
            efficiency=self.assumed.steps * self.ideal_s / wall,
            failures=self.failures,
            shares={kind: seconds / wall for kind, seconds in self.seconds.items()},
        )

    def _life(self) -> Process:
        finished = False
        while not finished:
            try:
                yield from self._attempt()
                finished = True
            except simpy.Interrupt:
                self.failures += 1
                self._abandon()
                yield from self._spend(FAILURES, self.assumed.detect_s)
        yield from self._spend(START_END, costs.end_s(self.cluster, self.size))

    def _attempt(self) -> Process:
        """From the newest checkpoint to the end, or to the next failure."""
        self.step = self.saved
        kind = FAILURES if self.failures else START_END
        yield from self._spend(kind, costs.start_s(self.cluster, self.size))
        self.loaders = [self._loader() for _ in range(self.cluster.nodes)]
        breaking = self.env.process(self._break_down()) if self.assumed.mtbf_gpu_hours else None
        while self.step < self.assumed.steps:
            yield from self._step()
            self.step += 1
            yield from self._after_step()
            self.furthest = max(self.furthest, self.step)
        if self.writer is not None:
            yield from self._wait(SAVING, self.writer)
        if breaking is not None:
            breaking.interrupt()

    def _step(self) -> Process:
        began = self.env.now
        for loader in self.loaders:
            yield from self._wait(DATA, loader.ready.get(1), began)
            began = self.env.now
        jitter = self.speeds.lognormal(0.0, self.assumed.jitter, self.cluster.gpus)
        factors = self.slowness * jitter
        mean, worst = float(factors.mean()), float(factors.max())
        for kind, seconds in (
            (COUNTING, self.costs.counting_s),
            (COMPUTE, mean * self.ideal_s),
            (SMALL_BATCHES, mean * (self.costs.compute_s - self.ideal_s)),
            (GATHERS, self.costs.gathers_s),
            (STRAGGLERS, (worst - mean) * self.costs.compute_s),
            (GRADIENTS, self.costs.gradients_s),
        ):
            yield from self._spend(kind, seconds)

    def _after_step(self) -> Process:
        assumed, last = self.assumed, self.step == self.assumed.steps
        if last or self.step % assumed.log_every_steps == 0:
            yield from self._spend(REPORTS, costs.report_s(self.cluster))
        if last or self.step % assumed.validate_every_steps == 0:
            yield from self._spend(VALIDATION, costs.validation_s(self.cluster))
        if last or self.step % assumed.save_every_steps == 0:
            yield from self._save()

    def _save(self) -> Process:
        if self.writer is not None:
            yield from self._wait(SAVING, self.writer)
        yield from self._spend(SAVING, costs.copying_s(self.cluster, self.size))
        self.writer = self.env.process(self._write(self.step))
        if not self.assumed.async_checkpoints:
            yield from self._wait(SAVING, self.writer)

    def _write(self, step: int) -> Process:
        try:
            yield self.env.timeout(costs.writing_s(self.cluster, self.size))
            self.saved = step
        except simpy.Interrupt:
            return

    def _break_down(self) -> Process:
        """The next failure of any GPU's node: one after another they have no memory."""
        mean_s = self.assumed.mtbf_gpu_hours * 3600 / self.cluster.gpus
        try:
            yield self.env.timeout(float(self.breaks.exponential(mean_s)))
            self.ranks.interrupt()
        except simpy.Interrupt:
            return

    def _abandon(self) -> None:
        for loader in self.loaders:
            loader.stop()
        if self.writer is not None and self.writer.is_alive:
            self.writer.interrupt()
        self.writer = None

    def _loader(self) -> NodeLoader:
        return NodeLoader(
            self.env,
            self.cluster,
            self.store,
            self.shards,
            samples_per_step=self.costs.samples / self.cluster.nodes,
            first_step=self.step,
        )

    def _spend(self, kind: str, seconds: float) -> Process:
        if seconds > 0:
            yield from self._wait(kind, self.env.timeout(seconds))

    def _wait(self, kind: str, event: Event, began: float | None = None) -> Process:
        began = self.env.now if began is None else began
        try:
            yield event
        except simpy.Interrupt:
            self.seconds[FAILURES] += self.env.now - began
            raise
        # What was done before is no gain.
        again = self.step < self.furthest
        self.seconds[FAILURES if again else kind] += self.env.now - began


def _slowness(cluster: Cluster) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """How many times as long each rank takes, all the time."""
    assumed, found = cluster.assumed, np.ones(cluster.gpus)
    slow = -int(-assumed.slow_nodes * cluster.nodes // 1)
    found[: slow * cluster.per_node] = assumed.slow_factor
    return found
