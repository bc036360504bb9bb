"""Ranks that meet: whether all come, how fast they add up, and how far apart their clocks are.

They meet over gloo on the CPU, and GPUs get a NCCL group of their own: so a NCCL that does not work
is a finding like any other, which the ranks can still tell each other.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store  # type: ignore[attr-defined]  # in no __all__
from torch.distributed.rendezvous import rendezvous

from jobs.doctor.check import MIB
from pipeline.training.world import World, environment_rank

WAIT_S = 120.0
"""Longest wait until all ranks are there."""
_CHECKS_S = 600.0
"""Longest wait for what another rank does meanwhile."""
_NCCL_S = 60.0
_LARGE = 8 * MIB
"""Values of the large all-reduce: 32 MiB in float32."""
_SMALL = 1024
_MEASURE_S = 1.0
_MOST_ROUNDS = 20
_QUESTIONS = 8
"""Times that a clock is asked; the answer that came fastest counts."""


@dataclass(frozen=True, kw_only=True)
class AllReduce:
    """How ranks added up.

    Attributes:
        backend: 'gloo' or 'nccl'.
        ranks: How many.
        large_s: Seconds of one all-reduce of 32 MiB, on the slowest rank.
        small_s: The same for 4 KiB.
        trouble: What went wrong; then the times mean nothing.
    """

    backend: str
    ranks: int
    large_s: float = math.inf
    small_s: float = math.inf
    trouble: str = ""

    @property
    def bytes_s(self) -> float:
        """Bytes a second through each rank's link: a ring moves 2 (n - 1) / n of the data."""
        return 2 * (self.ranks - 1) / self.ranks * 4 * _LARGE / self.large_s


def join_ranks(wait_s: float = WAIT_S) -> World:
    """Makes this process the rank that its launcher announced.

    Args:
        wait_s: Longest wait until all ranks are there, in seconds.

    Raises:
        RuntimeError: they do not all come; it says which.
    """
    rank, size, local_rank = environment_rank() or (0, 1, 0)
    names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank}
    os.environ.update({name: str(value) for name, value in names.items()})
    device = torch.device("cpu")
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=wait_s)))
    _wait_for_all(store, rank, size, wait_s)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=_CHECKS_S)
    )
    return World(rank=rank, size=size, device=device)


def _wait_for_all(store: Store, rank: int, size: int, wait_s: float) -> None:
    """Waits until every rank has signed; a process group could only say that it waited in vain."""
    signatures = [f"doctor/{each}" for each in range(size)]
    store.set(signatures[rank], "here")
    try:
        store.wait(signatures, timedelta(seconds=wait_s))
    except RuntimeError as error:
        missing = [each for each in range(size) if not store.check([signatures[each]])]
        shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        raise RuntimeError(
            f"{len(missing)} of {size} ranks did not come within {wait_s:.0f} s: {shown}"
        ) from error


def leave_ranks() -> None:
    """Ends the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def measure_all_reduce(world: World) -> AllReduce:
    """Times all-reduces over all ranks, which have to call this together.

    Returns:
        The same on every rank.

    Raises:
        LostContact: a rank went away.
    """
    backend = "nccl" if world.device.type == "cuda" else "gloo"
    trouble = _Trouble(world)
    group = None
    if backend == "nccl":
        # Makes a wait that lasts too long an error instead of the end of the process.
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
        group = dist.new_group(backend="nccl", timeout=timedelta(seconds=_NCCL_S))

    def add_up(values: Tensor) -> float:
        start = time.perf_counter()
        dist.all_reduce(values, group=group)
        total = values[-1].item()  # waits for a GPU
        spent = time.perf_counter() - start
        if total != world.size * (world.size + 1) / 2:
            raise RuntimeError(f"the sum over {world.size} ranks came out as {total}")
        return spent

    seconds = []
    for count in (_LARGE, _SMALL):
        values = torch.empty(count, device=world.device)
        # The first connects the ranks, the second tells how many more there is time for.
        spent = [trouble.slowest(add_up, values) for _ in range(2)][-1]
        if trouble.reason:
            return AllReduce(backend=backend, ranks=world.size, trouble=trouble.reason)
        rounds = max(1, min(_MOST_ROUNDS, int(_MEASURE_S / spent)))
        seconds.append(min(trouble.slowest(add_up, values) for _ in range(rounds)))
    large_s, small_s = seconds
    return AllReduce(
        backend=backend,
        ranks=world.size,
        large_s=large_s,
        small_s=small_s,
        trouble=trouble.reason,
    )


class _Trouble:
    """Lets ranks agree after each step whether it worked for all of them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.reason = ""

    def slowest(self, step: Callable[[Tensor], float], values: Tensor) -> float:
        """Fills the values with the rank's number plus 1 and takes a step with them.

        Returns:
            The seconds of the slowest rank; infinity where the step failed on any.
        """
        spent, reason = math.inf, ""
        if not self.reason:
            try:
                spent = step(values.fill_(self._world.rank + 1))
            except RuntimeError as error:
                if self._world.device.type == "cpu":
                    raise  # then the ranks cannot tell each other anything either
                reason = f"rank {self._world.rank}: {' '.join(str(error).split())[:200]}"
        reports = self._world.gather((spent, reason))
        self.reason = self.reason or next((said for _, said in reports if said), "")
        return max(seconds for seconds, _ in reports)


def clock_offsets(
    world: World, others: Sequence[int], clock: Callable[[], float] = time.time
) -> dict[int, float]:
    """Asks other ranks for their time; all ranks call this together.

    Args:
        world: The ranks.
        others: The ranks that are asked, by rank 0.
        clock: This rank's clock, in seconds.

    Returns:
        On rank 0, by how many seconds each clock is ahead of its own; elsewhere nothing.

    Raises:
        LostContact: a rank went away.
    """
    offsets = {}
    for other in others:
        if world.leads:
            offsets[other] = _ask(other, clock)
        elif world.rank == other:
            _answer(clock)
    return offsets


def _ask(other: int, clock: Callable[[], float]) -> float:
    answers = []
    for _ in range(_QUESTIONS):
        told = torch.zeros(1, dtype=torch.float64)
        sent = clock()
        dist.send(told, other)
        dist.recv(told, other)
        received = clock()
        # The other one looked at its clock in the middle, give or take half the way.
        answers.append((received - sent, told.item() - (sent + received) / 2))
    return min(answers)[1]


def _answer(clock: Callable[[], float]) -> None:
    for _ in range(_QUESTIONS):
        told = torch.zeros(1, dtype=torch.float64)
        dist.recv(told, 0)
        dist.send(told.fill_(clock()), 0)
