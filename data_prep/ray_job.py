"""Where preparation runs: Ray tasks, one a shard, on a local or an existing cluster.

The driver makes tasks as workers become free and hands out slices of annotations; a worker turns a
slice into a shard in the run's staging folder, which all nodes have to see. No sample ever travels
through Ray's object store on its way out, so memory stays with the tasks in flight.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

# Before ray is imported: it reads these once.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from PIL import features

from data_prep.errors import DataError
from data_prep.shard_job import BuiltShard, ShardTask, build_shard

OBJECT_STORE_BYTES = 200_000_000
"""Shared memory of a local cluster; a slice of annotations is well under a megabyte."""
IN_FLIGHT_PER_CPU = 2
"""Tasks handed out per CPU of a cluster: one that runs and one that waits."""
TRIES = 5
"""Workers that may die over one shard. More than one or two nodes of a cluster that is taken back
can go while a shard is made; a shard that kills its workers has to end."""
_CAPACITY_S = 10.0
"""Seconds after which the cluster is asked again how large it is: nodes come and go."""

_KNOCK_S = 10.0
"""Seconds in which the head of a cluster has to take a connection."""

ResultT = TypeVar("ResultT")
Capacity = Callable[[], int]
"""Number of shards that may be handed out at once, now."""


@contextmanager
def cluster(address: str | None, workers: int | None, gpus: int = 0) -> Iterator[Capacity]:
    """Connects to a cluster, or starts one on this machine that ends with the block.

    Without an address, RAY_ADDRESS counts, which Ray sets for what `ray job submit` runs.

    Args:
        address: Of the cluster.
        workers: CPUs of a cluster that is started here; tasks at once on another.
        gpus: GPUs of a cluster that is started here.

    Yields:
        Says how many shards may be handed out at once.

    Raises:
        DataError: There is no cluster at the address.
    """
    address = address or _surrounding()
    _knock(address)
    try:
        if address is None:
            ray.init(
                # Without the word, Ray joins whatever cluster it finds traces of on the machine.
                address="local",
                num_cpus=workers or len(os.sched_getaffinity(0)),
                num_gpus=gpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        # Ray says with a bare Exception that its processes did not start in time.
        token = "" if address is None else "; RAY_AUTH_MODE=token, if it asks for a token"
        raise DataError(f"no Ray cluster at {address or 'this machine'}: {error}{token}") from error
    try:
        if address is not None and workers is not None:
            # A cluster with more CPUs would run what should only wait.
            yield lambda: workers
        else:
            yield _Cpus()
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Raises DataError when nobody listens at host:port, which Ray takes minutes to notice."""
    host, _, port = (address or "").rpartition(":")
    if not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_S).close()
    except (OSError, OverflowError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise DataError(f"no Ray cluster at {address}: {words}") from error


def _surrounding() -> str | None:
    address = os.environ.get("RAY_ADDRESS", "")
    # The same name may hold the address of the dashboard, for the command line of Ray's jobs.
    return None if not address or address.startswith("http") else address


class _Cpus:
    """What keeps all CPUs of the cluster busy; it is asked for its size now and then."""

    def __init__(self) -> None:
        self._asked = -_CAPACITY_S
        self._cpus = 1

    def __call__(self) -> int:
        if time.monotonic() - self._asked >= _CAPACITY_S:
            resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
            self._cpus = max(1, int(resources.get("CPU", 1)))
            self._asked = time.monotonic()
        return self._cpus * IN_FLIGHT_PER_CPU


def build_shards(
    tasks: Iterable[ShardTask],
    staging: Path,
    capacity: Capacity,
    on_shard: Callable[[BuiltShard], None],
    *,
    only_if_recovered: bool = False,
) -> None:
    """Builds shards on the connected cluster; their bytes do not depend on its size.

    Args:
        tasks: What to build; the next one is asked for when a worker is about to be free.
        staging: Folder for finished shards, seen by all nodes.
        capacity: Says how many shards may be handed out at once.
        on_shard: Called with each finished shard, in the order of finishing.
        only_if_recovered: As build_shard has it.

    Raises:
        DataError: The output cannot be written, a store cannot be reached, or the workers of a
            shard died too often.
    """
    folder, versions = staging.absolute(), _versions()
    calls = ((task.number, (task, folder, only_if_recovered, versions)) for task in tasks)
    run_tasks(_build, calls, capacity, on_shard)


def run_tasks(
    work: Callable[..., ResultT],
    calls: Iterable[tuple[int, tuple[Any, ...]]],
    capacity: Capacity,
    on_result: Callable[[ResultT], None],
) -> None:
    """Runs a function for each shard on the connected cluster.

    Args:
        work: Runs in a worker with one CPU, possibly more than once for a shard.
        calls: Number of a shard and the arguments; the next is asked for when a worker is about to
            be free.
        capacity: Says how many shards may be handed out at once.
        on_result: Called with each result, in the order of finishing.

    Raises:
        DataError: The function raised it, or the workers of a shard died too often.
    """
    # SPREAD: a node that goes takes few shards with it, and none is bound to the node it began on.
    remote = ray.remote(num_cpus=1, max_retries=TRIES - 1, scheduling_strategy="SPREAD")(work)
    waiting = iter(calls)
    running: dict[ray.ObjectRef[ResultT], int] = {}
    try:
        while True:
            while len(running) < capacity():
                call = next(waiting, None)
                if call is None:
                    break
                number, arguments = call
                running[remote.remote(*arguments)] = number
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1)
            on_result(_result(done[0], running.pop(done[0])))
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _build(
    task: ShardTask, staging: Path, only_if_recovered: bool, versions: dict[str, str | None]
) -> BuiltShard:
    """What a worker runs; its complaints say on which node."""
    try:
        if _versions() != versions:
            raise DataError(
                f"worker has {_listed(_versions())}, the driver {_listed(versions)}: equal bytes "
                "need equal versions, install the same on all nodes"
            )
        if not staging.is_dir():
            raise DataError(
                f"{staging.parent.parent} cannot be written: the folder is gone, or the worker's "
                "node does not share it with the driver"
            )
        return build_shard(task, staging, only_if_recovered=only_if_recovered)
    except DataError as error:
        raise DataError(f"{error} (shard {task.number}, node {socket.gethostname()})") from error


@cache
def _versions() -> dict[str, str | None]:
    """What decides the bytes of a fitted and encoded image."""
    found: dict[str, str | None] = {"libjpeg": features.version_codec("jpg")}
    for name in ("pillow", "cykooz-resizer"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _listed(versions: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _result(reference: "ray.ObjectRef[ResultT]", number: int) -> ResultT:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DataError):
            raise DataError(str(error.cause)) from error
        if "failed to import" in str(error.cause) or isinstance(error.cause, ImportError):
            raise DataError(
                f"shard {number} was not built, its worker cannot import this program: install it "
                "on all nodes, or submit the job with its working directory"
            ) from error
        raise
    except ray.exceptions.RayError as error:
        raise DataError(
            f"shard {number} was not built, its workers died {TRIES} times: {error}"
        ) from error
