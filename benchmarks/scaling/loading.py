"""The data of one node in the simulation: shards come from the store, workers make steps of them.

Fetching overlaps with decoding, and a node's workers share what it has fetched; a real worker waits
for the shard of its own stream, so this is the best case.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import simpy
from numpy.random import Generator as Chance
from simpy.events import Event

from benchmarks.scaling.assumptions import Assumptions
from benchmarks.scaling.costs import GB, Cluster

Process = Generator[Event, Any, None]
"""What happens one event after another."""


def open_store(env: simpy.Environment, assumed: Assumptions) -> simpy.Resource | None:
    """The store that all nodes share: so many requests at a time, each at its own rate."""
    if not assumed.store_gb_per_s:
        return None
    requests = round(assumed.store_gb_per_s / assumed.store_stream_gb_per_s)
    return simpy.Resource(env, capacity=max(1, requests))


class NodeLoader:
    """What one node has read ahead."""

    def __init__(
        self,
        env: simpy.Environment,
        cluster: Cluster,
        store: simpy.Resource | None,
        chance: Chance,
        *,
        samples_per_step: float,
        first_step: int,
    ) -> None:
        """Begins to read.

        Args:
            env: The simulation.
            cluster: The GPUs that are fed.
            store: Where shards are; None where each node has them on its own disk.
            chance: Says which shards the node has already.
            samples_per_step: Of this node.
            first_step: Where the run begins or goes on.
        """
        assumed = cluster.assumed
        workers = assumed.workers_per_gpu * min(cluster.gpus, cluster.per_node)
        self._env, self._cluster, self._store, self._chance = env, cluster, store, chance
        self._samples = samples_per_step
        self._decoding_s = samples_per_step / (workers * assumed.samples_per_s_per_worker)
        self._asked = first_step * samples_per_step
        fetchers = assumed.fetches_per_node if store is not None else 1
        room = 2 * samples_per_step + (fetchers + 1) * assumed.shard_samples
        self._fetched = simpy.Container(env, capacity=room)
        self.ready = simpy.Container(env, capacity=assumed.prefetch_steps)
        """Steps that are waiting to be taken."""
        self._processes = [env.process(self._fetch()) for _ in range(fetchers)]
        self._processes.append(env.process(self._decode()))

    def stop(self) -> None:
        """Ends all that is under way."""
        for process in self._processes:
            if process.is_alive:
                process.interrupt()

    def _fetch(self) -> Process:
        assumed = self._cluster.assumed
        seconds = (
            assumed.shard_samples * assumed.sample_bytes / (assumed.store_stream_gb_per_s * GB)
        )
        with contextlib.suppress(simpy.Interrupt):
            while True:
                has_it = self._has_next()
                self._asked += assumed.shard_samples
                if self._store is not None and not has_it:
                    with self._store.request() as turn:
                        yield turn
                        yield self._env.timeout(seconds)
                yield self._fetched.put(assumed.shard_samples)

    def _has_next(self) -> bool:
        """Each epoch deals the shards anew, so a node has had one before by chance only."""
        if not self._cluster.assumed.cached:
            return False
        nodes = self._cluster.nodes
        epoch = int(self._asked * nodes // self._cluster.assumed.dataset_samples)
        return float(self._chance.random()) >= (1 - 1 / nodes) ** epoch

    def _decode(self) -> Process:
        with contextlib.suppress(simpy.Interrupt):
            while True:
                yield self._fetched.get(self._samples)
                yield self._env.timeout(self._decoding_s)
                yield self.ready.put(1)
