"""The process group of a run: how a process becomes a rank, whichever engine it trains with."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]  # in no __all__

from pipeline.config import RunConfig
from pipeline.training.world import World, environment_rank, lost_contact


def join_world(config: RunConfig) -> World:
    """Makes this process a rank: of the launcher that started it, or the only one.

    Raises:
        TrainingError: the other ranks do not appear.
    """
    here = environment_rank()
    rank, size, local_rank = here or (0, 1, 0)
    if here is not None:
        # Slurm's names, in those that torch and DeepSpeed read.
        names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank}
        os.environ.update({name: str(value) for name, value in names.items()})
    device = torch.device("cpu")
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    try:
        # A run that broke earlier in this process has left its group: nothing is undone then.
        if not dist.is_initialized():
            # A process that nobody launched has nobody to meet, and must not look like a rank to
            # what it starts.
            alone: dict[str, Any] = {"store": HashStore(), "rank": 0, "world_size": 1}
            dist.init_process_group(
                "gloo" if device.type == "cpu" else "nccl",
                timeout=timedelta(seconds=config.training.step_timeout_s),
                **({} if here else alone),
            )
    except RuntimeError as error:
        raise lost_contact(rank, error) from error
    return World(rank=rank, size=size, device=device)


def leave_world() -> None:
    """Ends the process group; after it no rank talks to another."""
    if dist.is_initialized():
        dist.destroy_process_group()
