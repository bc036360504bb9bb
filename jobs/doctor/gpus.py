"""The GPUs of this machine: driver, memory, and the library with which they talk."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.distributed as dist

from jobs.doctor.check import GIB, Check

_DRIVER = Path("/proc/driver/nvidia/version")


def check_gpus(wanted: int = 0) -> Check:
    """The GPUs that torch sees.

    Args:
        wanted: GPUs that there have to be; with 0, a machine without any is fine.
    """
    driver = driver_version(_DRIVER)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < max(wanted, 1):
        return _too_few(count, wanted, driver)
    try:
        names, used = _memory(count)
    except RuntimeError as error:
        found = f"driver {driver or 'unknown'}: {' '.join(str(error).split())[:200]}"
        advice = "see `nvidia-smi`: the driver may be too old for torch, or another process has it"
        return Check("GPUs", "failed", found, advice)
    found = f"{', '.join(names)}; driver {driver or 'unknown'}, CUDA {torch.version.cuda}"
    if dist.is_nccl_available():
        found += f", NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"
    elif count > 1:
        advice = "install a build of torch with NCCL; without it GPUs cannot train together"
        return Check("GPUs", "failed", f"{found}, no NCCL", advice)
    if used:
        advice = f"another process uses GPU {', '.join(used)}; see `nvidia-smi`"
        return Check("GPUs", "warning", found, advice)
    return Check("GPUs", "ok", found)


def _memory(count: int) -> tuple[list[str], list[str]]:
    """Names of the GPUs with their memory, and the numbers of those that are in use."""
    names, used = [], []
    for index in range(count):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        names.append(f"{name} ({free / GIB:.1f} of {total / GIB:.1f} GiB free)")
        if free < total / 2:
            used.append(str(index))
    return names, used


def driver_version(path: Path) -> str | None:
    """The version in the file in which NVIDIA's kernel module tells its own; None without one."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return None
    found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text)
    return found[1] if found else "of unknown version"


def _too_few(count: int, wanted: int, driver: str | None) -> Check:
    if driver is None and not wanted:
        return Check("GPUs", "ok", "none; everything runs on the CPU")
    found = f"{count or 'none'} that torch can use, {wanted} wanted"
    if driver is None:
        advice = "ask the scheduler for GPUs; a container needs `--gpus all`"
        return Check("GPUs", "failed", f"{found}; no driver", advice)
    if torch.version.cuda is None:
        advice = "torch has no CUDA: install a CUDA build of torch"
    else:
        advice = "look at CUDA_VISIBLE_DEVICES and at what the scheduler granted"
    return Check("GPUs", "failed" if wanted else "warning", f"{found}; driver {driver}", advice)
