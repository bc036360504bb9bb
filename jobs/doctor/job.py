"""The checks across a job: every rank takes part, the first of each node looks at that node."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence

from jobs.doctor.check import Check
from jobs.doctor.network import all_reduce_check, clock_check
from jobs.doctor.plan import Plan
from jobs.doctor.ranks import (
    WAIT_S,
    clock_offsets,
    join_ranks,
    leave_ranks,
    measure_all_reduce,
)
from jobs.doctor.report import Report
from pipeline.errors import TrainingError
from pipeline.training.world import World, environment_rank


def examine_job(plan: Plan, wait_s: float = WAIT_S) -> tuple[list[Report], bool]:
    """Looks at the nodes of a job and at what lies between them.

    Args:
        plan: What is looked at on each node.
        wait_s: Longest wait until all ranks are there, in seconds.

    Returns:
        A report of what lies between the ranks and one of each node, the same on every rank, and
        whether this rank is the one to print them. Where the ranks do not stay together, every
        node prints its own.
    """
    rank, size, local_rank = environment_rank() or (0, 1, 0)
    place = f"{socket.gethostname()}, rank {rank}"
    looks = local_rank == 0
    checks: list[Check] | None = None
    start = time.monotonic()
    try:
        world = join_ranks(wait_s)
        joined_s = time.monotonic() - start
        nodes = _nodes(world.gather((place, looks)))
        between = [
            Check("ranks", "ok", f"all {size} met in {joined_s:.1f} s; nodes: {len(nodes)}"),
            *_between(plan, world, nodes),
        ]
        # After the measurements, which it would disturb.
        checks = look(plan) if looks else None
        told = world.gather((place, between, checks))
    except (RuntimeError, TrainingError) as error:
        lost = _lost(error)
        own = (checks or look(plan)) if looks else []
        return [Report(place, [lost, *own])], looks
    finally:
        leave_ranks()
    reports = [Report(node, found) for node, _, found in told if found is not None]
    return [Report("between the ranks", told[0][1]), *reports], rank == 0


def look(plan: Plan) -> list[Check]:
    """Makes the checks of this node."""
    return [step() for step in plan.node_steps().values()]


def _nodes(places: Sequence[tuple[str, bool]]) -> dict[int, str]:
    """The first rank of each node, and what the node is called."""
    return {rank: place for rank, (place, first) in enumerate(places) if first}


def _between(plan: Plan, world: World, nodes: dict[int, str]) -> list[Check]:
    """What is measured between the ranks, as rank 0 sees it."""
    checks = []
    if "all-reduce" not in plan.skip:
        checks.append(all_reduce_check(measure_all_reduce(world)))
    if "clocks" not in plan.skip:
        offsets = clock_offsets(world, [rank for rank in nodes if rank != 0])
        checks.append(clock_check({nodes[rank]: offset for rank, offset in offsets.items()}))
    return checks


def _lost(error: Exception) -> Check:
    found = " ".join(str(error).split())[:300]
    advice = (
        "see that every rank was started, that MASTER_ADDR is the first node's and MASTER_PORT is"
        " open, and name the network by GLOO_SOCKET_IFNAME"
    )
    return Check("ranks", "failed", found, advice)
