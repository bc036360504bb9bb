"""DeepSpeed as a run wants it: told its accelerator, silent, over the ranks' own process group."""

from __future__ import annotations

import logging
import os
import warnings

import torch

# Read while DeepSpeed is imported; without it, it looks for accelerators by itself, and slowly.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
# It announces its findings while it is imported, on every rank.
logging.disable(logging.INFO)
import deepspeed  # noqa: E402
from deepspeed.utils import logger as deepspeed_logger  # noqa: E402

logging.disable(logging.NOTSET)
# Its calls of torch.distributed, once a rank; nothing that a user could change.
warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
deepspeed_logger.setLevel(logging.WARNING)

__all__ = ["deepspeed", "join_deepspeed"]


def join_deepspeed() -> None:
    """Lets DeepSpeed talk over the process group that the ranks have; again does nothing."""
    if deepspeed.get_accelerator().device_name() == "cpu":
        # Its shared-memory all-reduce is compiled on first use and leaves its buffers in /dev/shm
        # behind a killed rank; gloo needs neither. An empty table also spares probing compilers.
        deepspeed.ops.__compatible_ops__ = {}
    # It insists on this one, also where there is no other rank.
    os.environ.setdefault("LOCAL_RANK", "0")
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
