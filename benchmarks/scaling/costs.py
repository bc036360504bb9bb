"""What follows from the assumptions by a formula: times of collectives, steps and checkpoints.

Collectives follow the usual model of a start-up time for each hop and a time for each byte (Thakur
et al., 2005): a ring for what is long, a tree for what is short, whichever is faster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.scaling.assumptions import Assumptions
from benchmarks.scaling.sizes import ModelSize

_FLOAT32 = 4
_ADAM_VALUES = 3
"""A checkpoint has the parameter and AdamW's two means."""
_COUNTS = 16
"""Bytes of the meeting before each step: tokens, and whether to stop."""
_SMALL = 8
_LARGEST_BUCKET = 50_000_000
"""Most values that DeepSpeed sums or prefetches at once, as `pipeline.training.deepspeed_config`
sets it."""
GB = 1e9


@dataclass(frozen=True)
class Cluster:
    """So many GPUs of a kind, and how they talk."""

    assumed: Assumptions
    gpus: int

    def __post_init__(self) -> None:
        whole = self.gpus <= self.per_node or self.gpus % self.per_node == 0
        if self.gpus < 1 or not whole:
            raise ValueError(f"{self.gpus} GPUs do not fill nodes of {self.per_node}")

    @property
    def per_node(self) -> int:
        """Most GPUs of a node."""
        return self.assumed.gpus_per_node

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return math.ceil(self.gpus / self.per_node)

    def all_reduce_s(self, size: float) -> float:
        """Time to sum `size` bytes over all GPUs."""
        if self.gpus == 1:
            return 0.0
        local = min(self.gpus, self.per_node)
        hops = math.ceil(math.log2(local)) * self.assumed.node_link_latency_s
        hops += math.ceil(math.log2(self.nodes)) * self.assumed.network_latency_s
        tree = 2 * hops + 2 * size / self._bytes_per_s
        ring = 2 * self._ring_s(size)
        return self.assumed.collective_launch_s + min(ring, tree)

    def all_gather_s(self, size: float) -> float:
        """Time until every GPU has all of `size` bytes of which each held its part.

        Scattering a sum takes as long.
        """
        if self.gpus == 1:
            return 0.0
        return self.assumed.collective_launch_s + self._ring_s(size)

    def _ring_s(self, size: float) -> float:
        """Once around: each hop passes one GPU's part on; every `per_node`-th leaves a node."""
        outside = self.nodes if self.nodes > 1 else 0
        latency = outside * self.assumed.network_latency_s
        latency += (self.gpus - outside) * self.assumed.node_link_latency_s
        return (self.gpus - 1) / self.gpus * (latency + size / self._bytes_per_s)

    @property
    def _bytes_per_s(self) -> float:
        """Of a ring within a node, or of as many rings between nodes as these have ports."""
        link = self.assumed.node_link_gb_per_s
        ports = self.assumed.network_gb_per_s * self.per_node
        return GB * (link if self.nodes == 1 else min(link, ports))


@dataclass(frozen=True)
class StepCosts:
    """One step without anything in its way, in seconds."""

    samples: int
    """Of all GPUs."""
    compute_s: float
    counting_s: float
    """The small meeting before the step."""
    gradients_s: float
    """Summing gradients, their norm, and passing on what was updated."""
    gathers_s: float
    """Gathering the layers of a sharded base."""

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.compute_s + self.counting_s + self.gradients_s + self.gathers_s


def step_costs(cluster: Cluster, size: ModelSize) -> StepCosts:
    """The costs of a step."""
    assumed = cluster.assumed
    batch = assumed.global_batch or cluster.gpus * assumed.micro_batch
    per_gpu = math.ceil(batch / cluster.gpus)
    micro_batches = math.ceil(per_gpu / assumed.micro_batch)
    rate = assumed.peak_tflops * 1e12 * assumed.utilisation
    compute = per_gpu * size.flops / rate + micro_batches * assumed.micro_batch_overhead_s
    gathers = 0.0
    if assumed.zero_stage == 3:
        gathers = 2 * micro_batches * _gathering_s(cluster, size)
    return StepCosts(
        samples=batch,
        compute_s=compute,
        counting_s=cluster.all_reduce_s(_COUNTS),
        gradients_s=_reducing_s(cluster, size, micro_batches),
        gathers_s=gathers,
    )


def _reducing_s(cluster: Cluster, size: ModelSize, micro_batches: int) -> float:
    """Gradients, their norm, and what others have updated."""
    stage, buckets = cluster.assumed.zero_stage, math.ceil(size.trained / _LARGEST_BUCKET)
    bucket = _FLOAT32 * size.trained / buckets
    # Stages 1 and 2 sum whole buckets, too, and keep a part; from 2 on after each micro-batch.
    summing = cluster.all_gather_s(bucket) if stage == 3 else cluster.all_reduce_s(bucket)
    passing_on = cluster.all_gather_s(bucket) if stage in (1, 2) else 0.0
    times = micro_batches if stage >= 2 else 1
    return buckets * (times * summing + passing_on) + cluster.all_reduce_s(_SMALL)


def _gathering_s(cluster: Cluster, size: ModelSize) -> float:
    """Gathering the whole base once, in as few parts as prefetching can make of it."""
    prefetched = min(size.trained, _LARGEST_BUCKET)
    parts = min(size.modules, math.ceil(size.base / prefetched))
    return parts * cluster.all_gather_s(_FLOAT32 * size.base / parts)


def checkpoint_bytes(size: ModelSize) -> int:
    """What a checkpoint holds."""
    return _FLOAT32 * _ADAM_VALUES * size.trained


def copying_s(cluster: Cluster, size: ModelSize) -> float:
    """What a checkpoint costs the loop before a thread takes it over."""
    assumed = cluster.assumed
    gathering = cluster.all_gather_s(checkpoint_bytes(size)) if assumed.zero_stage else 0.0
    return gathering + checkpoint_bytes(size) / (assumed.host_copy_gb_per_s * GB)


def writing_s(cluster: Cluster, size: ModelSize) -> float:
    """Writing a checkpoint and reading it again."""
    return 2 * checkpoint_bytes(size) / (cluster.assumed.disk_gb_per_s * GB)


def validation_s(cluster: Cluster) -> float:
    """The rank with most batches decides."""
    assumed = cluster.assumed
    samples = math.ceil(assumed.validation_samples / cluster.gpus)
    return math.ceil(samples / assumed.validation_batch) * assumed.search_s


def report_s(cluster: Cluster) -> float:
    """A report: a sum over the ranks, and the leading rank's work."""
    return cluster.all_reduce_s(_COUNTS * 8) + cluster.assumed.report_s


def start_s(cluster: Cluster, size: ModelSize) -> float:
    """From the scheduler's decision to the first step: every node reads the base, ranks hash it."""
    assumed = cluster.assumed
    base = _FLOAT32 * size.base
    from_store = (
        cluster.nodes * base / (assumed.store_gb_per_s * GB) if assumed.store_gb_per_s else 0
    )
    from_stream = base / (assumed.disk_gb_per_s * GB)
    return assumed.start_s + max(from_store, from_stream) + end_s(cluster, size)


def end_s(cluster: Cluster, size: ModelSize) -> float:
    """The fingerprint, once."""
    return _FLOAT32 * size.base / (cluster.assumed.fingerprint_gb_per_s * GB)
