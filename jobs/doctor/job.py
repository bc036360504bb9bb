"""The checks across a job: every rank takes part, the first of each node looks at that node."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Sequence

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


def examine_job(
    plan: Plan, tell: Callable[[Sequence[Report]], None], wait_s: float = WAIT_S
) -> bool:
    """Looks at the nodes of a job and at what lies between them.

    Where the ranks stay together, rank 0 tells of everything and all ranks know how it went. Else
    the first rank of each node tells of its node.

    Args:
        plan: What is looked at on each node.
        tell: Prints reports.
        wait_s: Longest wait until all ranks are there, in seconds.

    Returns:
        Whether something failed that this rank has to answer for.
    """
    rank, _, local_rank = environment_rank() or (0, 1, 0)
    place = f"{socket.gethostname()}, rank {rank}"
    looks = local_rank == 0
    checks: list[Check] | None = None
    try:
        world, joined_s = _join(wait_s)
        nodes = _nodes(world.gather((place, looks)))
        met = f"all {world.size} met in {joined_s:.1f} s; nodes: {len(nodes)}"
        between = [Check("ranks", "ok", met), *_between(plan, world, nodes)]
        # After the measurements, which it would disturb.
        checks = look(plan) if looks else None
        told = world.gather((place, between, checks))
        reports = [Report(node, found) for node, _, found in told if found is not None]
        reports = [Report("between the ranks", told[0][1]), *reports]
        if world.leads:
            tell(reports)
        # Launchers end all ranks when one ends with a failure: not before the first has told.
        world.barrier()
    except (RuntimeError, TrainingError) as error:
        lost = _lost(error)
        if not looks:
            # The first rank of the node answers: it is still looking, and would be ended.
            print(f"{place}: {lost.found}", file=sys.stderr)
            return False
        tell([Report(place, [lost, *(checks or look(plan))])])
        return True
    finally:
        leave_ranks()
    return any(report.failed for report in reports)


def look(plan: Plan) -> list[Check]:
    """Makes the checks of this node."""
    return [step() for step in plan.node_steps().values()]


def _join(wait_s: float) -> tuple[World, float]:
    """The ranks, and the seconds until all were there."""
    start = time.monotonic()
    return join_ranks(wait_s), time.monotonic() - start


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
