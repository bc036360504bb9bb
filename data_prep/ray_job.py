"""Where preparation runs: Ray tasks, one a shard, on a local or an existing cluster.

The driver reads the annotations and hands out slices; a worker turns a slice into a shard and
writes it to the output folder, which all nodes have to see. No sample ever travels through Ray's
object store on its way out, so memory stays with the tasks in flight.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

# Before ray is imported: it reads these once.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

from data_prep.errors import DataError
from data_prep.shard_job import ShardTask, build_shard

OBJECT_STORE_BYTES = 200_000_000
"""Shared memory of a local cluster; a slice of annotations is well under a megabyte."""
IN_FLIGHT_PER_WORKER = 2
"""Tasks handed out per worker: one that runs and one that waits."""


@contextmanager
def cluster(address: str | None, workers: int | None) -> Iterator[int]:
    """Connects to a cluster, or starts one on this machine that ends with the block.

    Yields:
        The number of shards that may be built at once.

    Raises:
        DataError: There is no cluster at the address.
    """
    try:
        if address is None:
            cpus = workers or len(os.sched_getaffinity(0))
            ray.init(
                # Without the word, Ray joins whatever cluster it finds traces of on the machine.
                address="local",
                num_cpus=cpus,
                num_gpus=0,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise DataError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
    try:
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        yield workers or max(1, int(resources.get("CPU", 1)))
    finally:
        ray.shutdown()


def build_shards(
    tasks: Sequence[ShardTask], workers: int, on_shard: Callable[[int, int], None]
) -> None:
    """Builds shards on the connected cluster; their bytes do not depend on the number of workers.

    Args:
        tasks: What to build.
        workers: Shards that are built at once.
        on_shard: Called with (samples, rejected) when a shard is finished.

    Raises:
        DataError: The output cannot be written, or a worker died too often.
    """
    build = ray.remote(num_cpus=1, max_retries=3)(build_shard)
    waiting = iter(tasks)
    running: dict[ray.ObjectRef[tuple[int, int]], int] = {}
    try:
        while True:
            while len(running) < workers * IN_FLIGHT_PER_WORKER:
                task = next(waiting, None)
                if task is None:
                    break
                running[build.remote(task)] = task.number
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1)
            number = running.pop(done[0])
            on_shard(*_result(done[0], number))
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _result(reference: "ray.ObjectRef[tuple[int, int]]", number: int) -> tuple[int, int]:
    try:
        samples, rejected = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, DataError):
            raise DataError(str(cause)) from error
        raise
    except ray.exceptions.RayError as error:
        raise DataError(f"shard {number} was not built, its worker failed: {error}") from error
    return samples, rejected
