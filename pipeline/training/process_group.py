"""The process group of a run: how a process becomes a rank, whichever engine it trains with."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from pipeline.config import RunConfig
from pipeline.training.world import World, environment_rank, lost_contact


def join_world(config: RunConfig) -> World:
    """Makes this process a rank: of the launcher that started it, or the only one.

    Raises:
        TrainingError: the other ranks do not appear.
    """
    rank, size, local_rank = environment_rank() or (0, 1, 0)
    names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank}
    os.environ.update({name: str(value) for name, value in names.items()})
    if size == 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "0")  # any that is free
    device = torch.device("cpu")
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    try:
        # A run that broke earlier in this process has left its group: nothing is undone then.
        if not dist.is_initialized():
            dist.init_process_group(
                "gloo" if device.type == "cpu" else "nccl",
                timeout=timedelta(seconds=config.training.step_timeout_s),
            )
    except RuntimeError as error:
        raise lost_contact(rank, error) from error
    return World(rank=rank, size=size, device=device)


def leave_world() -> None:
    """Ends the process group; after it no rank talks to another."""
    if dist.is_initialized():
        dist.destroy_process_group()
