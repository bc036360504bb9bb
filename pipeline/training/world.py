"""The ranks of a run, and the few things that they tell each other outside the optimizer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import TrainingError

ObjectT = TypeVar("ObjectT")


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the ranks; without a process group it is alone."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this rank writes the files and talks."""
        return self.rank == 0

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums each value over the ranks, in float64.

        Raises:
            LostContact: another rank is gone.
        """
        if self.size == 1:
            return list(values)
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        vector = torch.tensor(values, dtype=dtype, device=self.device)
        self._collective(lambda: dist.all_reduce(vector))
        summed: list[float] = vector.tolist()
        return summed

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces float tensors by their mean over the ranks."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self._collective(lambda: dist.all_reduce(flat))
        flat /= self.size
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather(self, value: ObjectT) -> list[ObjectT]:
        """The objects of all ranks, in their order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[ObjectT | None] = [None] * self.size
        self._collective(lambda: dist.all_gather_object(values, value))
        return [value for value in values if value is not None]

    def barrier(self) -> None:
        """Waits until all ranks are here."""
        if self.size > 1:
            self._collective(dist.barrier)

    @contextmanager
    def contact(self) -> Iterator[None]:
        """For work inside which ranks meet: says in one line that another one is gone.

        Raises:
            LostContact: another rank is gone.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and is_lost_contact(error):
                raise lost_contact(self.rank, error) from error
            raise

    def _collective(self, run: Callable[[], object]) -> None:
        try:
            run()
        except RuntimeError as error:
            raise lost_contact(self.rank, error) from error


def is_lost_contact(error: BaseException) -> bool:
    """Whether an error inside a library means that another rank is gone or does not answer."""
    words = str(error).lower()
    return any(sign in words for sign in ("connection", "timed out", "timeout"))


class LostContact(TrainingError):
    """Another rank is gone or does not answer."""


def lost_contact(rank: int, error: BaseException) -> LostContact:
    """What a rank says when another one went away: the reason stands in the other's own words."""
    words = " ".join(str(error).split())
    # Gloo begins with the place in its source and ends with advice.
    reason = words.split("] ", 1)[-1].split(". This is typically", 1)[0][:160]
    return LostContact(f"rank {rank} lost contact with another rank: {reason}")


@contextmanager
def meeting_place() -> Iterator[dict[str, str]]:
    """Where the ranks of this machine find each other, kept open by the process that starts them.

    A port that is looked for now and opened by a rank seconds later may be taken by then. So this
    process listens itself, on a port of the system's choice, and the ranks only connect: that is
    torchrun's arrangement, and `env://` knows it by torchrun's variables.

    Yields:
        Environment variables for the ranks.
    """
    # torch offers it without naming it in __all__.
    store = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )
    yield {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    # The store closes when its last reference goes, so it must live until here.
    del store


def environment_rank() -> tuple[int, int, int] | None:
    """Rank, number of ranks and rank on this machine, as a launcher announced them; else None.

    Slurm's own variables count too: its launcher sets no others.
    """
    for rank, size, local in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    ):
        if rank in os.environ and size in os.environ and "MASTER_ADDR" in os.environ:
            return int(os.environ[rank]), int(os.environ[size]), int(os.environ.get(local, 0))
    return None


def ranks_here() -> int:
    """Ranks on this machine."""
    return int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)


def threads_of_a_rank(wanted: int | None) -> int:
    """CPU threads of this rank: as wanted, else its share of the cores of this process."""
    return wanted or max(1, len(os.sched_getaffinity(0)) // ranks_here())
