"""The ranks of one attempt: reserved together, started, watched, ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from jobs.launch.ray.group import Group
from jobs.launch.ray.host import Place, RankHost
from pipeline.errors import TrainingError

LOOK_EVERY_S = 0.5
_ANSWER_S = 120.0
"""Longest that a node may take to answer."""
_SAY_AFTER_S = 10.0
"""Seconds of waiting for room after which the log says so."""


class NodeLost(Exception):
    """A node went away with its ranks, or never gave an answer."""


@dataclass(frozen=True, kw_only=True)
class Started:
    """Ranks that run, in their order."""

    hosts: list[Any]
    """Handles of their actors."""
    places: list[Place]


@contextmanager
def reserved(group: Group, stopped: Callable[[], bool]) -> Iterator[PlacementGroup | None]:
    """Keeps room for all ranks, as soon as there is some; None when stopped before.

    Args:
        group: The ranks.
        stopped: Whether nobody waits for it any more.
    """
    room = placement_group(group.bundles(), strategy=group.strategy)
    try:
        yield room if _wait_for_room(group, room, stopped) else None
    finally:
        remove_placement_group(room)


def _wait_for_room(group: Group, room: PlacementGroup, stopped: Callable[[], bool]) -> bool:
    since, said = time.monotonic(), False
    while not room.wait(LOOK_EVERY_S):
        if stopped():
            return False
        if not said and time.monotonic() - since > _SAY_AFTER_S:
            said = True
            wanted, bundle = len(group.bundles()), group.bundles()[0]
            apart = ", each on another node" if group.placement == "nodes" else ""
            print(
                f"waiting for the cluster to have room for {wanted} times {bundle}{apart}",
                flush=True,
            )
    return not stopped()


def start(
    group: Group, room: PlacementGroup, command: Sequence[str], locked: Mapping[str, str]
) -> Started:
    """Starts all ranks in their room.

    Raises:
        NodeLost: a node went away meanwhile.
        TrainingError: a rank cannot be started.
    """
    remote: Any = ray.remote(RankHost)
    hosts: list[Any] = [
        remote.options(
            num_cpus=group.cpus_per_rank,
            num_gpus=group.gpus_per_rank,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                room, placement_group_bundle_index=index // group.ranks_per_bundle
            ),
        ).remote()
        for index in range(group.ranks)
    ]
    found: list[Place] = answers([host.place.remote() for host in hosts])
    # Neighbours first: ranks of a node have numbers that follow each other.
    nodes = list(dict.fromkeys(place.node for place in found))
    order = sorted(range(len(hosts)), key=lambda index: (nodes.index(found[index].node), index))
    hosts, places = [hosts[index] for index in order], [found[index] for index in order]
    port = answers([hosts[0].free_port.remote()])[0]
    environments = rank_environments(group, places, port)
    answers(
        [
            host.start.remote(list(command), environment, _log(group, rank), dict(locked))
            for rank, (host, environment) in enumerate(zip(hosts, environments, strict=True))
        ]
    )
    return Started(hosts=hosts, places=places)


def _log(group: Group, rank: int) -> str | None:
    return None if group.logs is None else str(PurePosixPath(group.logs, f"rank-{rank}.log"))


def rank_environments(group: Group, places: Sequence[Place], port: int) -> list[dict[str, str]]:
    """The variables of each rank, by torchrun's names.

    Args:
        group: The ranks.
        places: Where each runs; those of a node follow each other.
        port: Where the first one waits for the others.
    """
    master = places[0].address
    made = []
    for rank, place in enumerate(places):
        here = [other for other in range(len(places)) if places[other].node == place.node]
        variables = {
            "RANK": str(rank),
            "WORLD_SIZE": str(len(places)),
            "LOCAL_RANK": str(here.index(rank)),
            "LOCAL_WORLD_SIZE": str(len(here)),
            # DeepSpeed's name for the same.
            "LOCAL_SIZE": str(len(here)),
            "MASTER_ADDR": master,
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": str(group.cpus_per_rank),
            "TOKENIZERS_PARALLELISM": "false",
        }
        if group.gpus_per_rank:
            # Each rank sees its neighbours' devices too: it takes the one of its local number, and
            # NCCL reaches the others directly.
            gpus = [gpu for other in here for gpu in places[other].gpus]
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        else:
            variables["DS_ACCELERATOR"] = "cpu"
        if master.startswith("127."):
            # All on one machine, which need not be reached from outside.
            variables["GLOO_SOCKET_IFNAME"] = "lo"
        made.append(variables)
    return made


def answers(references: Sequence[Any]) -> list[Any]:
    """What hosts answer.

    Raises:
        NodeLost: one is gone, or gives no answer.
        TrainingError: one cannot do what it was asked for.
    """
    try:
        return list(ray.get(list(references), timeout=_ANSWER_S))
    except RayTaskError as error:
        if isinstance(error.cause, TrainingError):
            raise TrainingError(str(error.cause)) from error
        raise
    except RayActorError as error:
        if "setup hook" in str(error):
            # Its last line is what our own code said there.
            raise TrainingError(f"a rank cannot be started: {last_line(error)}") from error
        raise NodeLost(last_line(error)) from error
    except GetTimeoutError as error:
        raise NodeLost(f"a node gave no answer within {_ANSWER_S:.0f} s") from error
    except RayError as error:
        raise TrainingError(f"a rank cannot be started: {last_line(error)}") from error


def end(started: Started) -> None:
    """Makes sure that no rank of this attempt runs on, as far as its node still answers."""
    for reference in [host.end.remote() for host in started.hosts]:
        with suppress(RayError):
            ray.get(reference, timeout=10)
    for host in started.hosts:
        ray.kill(host)


def last_line(error: BaseException) -> str:
    """The end of what Ray says, which tells the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
