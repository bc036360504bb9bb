"""What the machine offers a process: cores, memory, shared memory, open files, a compiler."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path

import psutil
import torch

from jobs.doctor.check import GIB, MIB, Check

_LEAST_SHARED = 160 * MIB
"""Below this neither Ray's object store nor loader processes can work."""
_FEW_FILES = 4096
_TOO_FEW_FILES = 512
"""A rank keeps up to 256 shards open, and its libraries some more."""


def check_processors() -> Check:
    """Cores that this process may use, which a container or scheduler can limit."""
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    found = f"{usable} of {present} cores usable, {torch.get_num_threads()} torch threads"
    if usable < 2:
        return Check("processors", "warning", found, "ask for 2 or more: the demo trains two ranks")
    return Check("processors", "ok", found)


def check_memory() -> Check:
    """Memory that is free now."""
    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available"
    if memory.available < 3 * GIB:
        advice = "free some: Ray, two ranks and MLflow take about 3 GiB together"
        return Check("memory", "warning", found, advice)
    return Check("memory", "ok", found)


def check_shared_memory(place: Path = Path("/dev/shm")) -> Check:
    """Shared memory, and what killed runs left in it."""
    if not place.is_dir():
        return Check("shared memory", "failed", f"{place} is missing", f"mount a tmpfs on {place}")
    usage = shutil.disk_usage(place)
    left = list(place.glob("deepspeed_allreduce_buffer*"))
    found = f"{usage.free / GIB:.2f} of {usage.total / GIB:.2f} GiB free in {place}"
    if usage.free < _LEAST_SHARED:
        advice = (
            "give the container more: `docker run --shm-size=2g`; on Kubernetes an emptyDir of"
            " medium Memory at /dev/shm"
        )
        return Check("shared memory", "failed", found, advice)
    if left:
        size = sum(path.stat().st_size for path in left) / GIB
        found += f"; {len(left)} DeepSpeed buffers of {size:.2f} GiB"
        advice = f"if no training runs here, remove {place}/deepspeed_allreduce_buffer*"
        return Check("shared memory", "warning", found, advice)
    return Check("shared memory", "ok", found)


def check_open_files() -> Check:
    """How many files a process may have open at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return Check("open files", "ok", "no limit")
    most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    found = f"{soft} at once, {most} at most"
    if soft >= _FEW_FILES:
        return Check("open files", "ok", found)
    advice = (
        "`ulimit -n 65536` before the command, or `docker run --ulimit nofile=65536`: shards and"
        " Ray's connections need many"
    )
    return Check("open files", "failed" if soft < _TOO_FEW_FILES else "warning", found, advice)


def check_compiler() -> Check:
    """The C++ compiler, which `engine.compile` needs; nothing else here compiles."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if not compiler or not shutil.which(compiler.split()[0]):
        found = f"CXX={compiler} is not there" if compiler else "no C++ compiler"
        return Check("compiler", "warning", found, "install g++, or leave engine.compile off")
    return Check("compiler", "ok", compiler)
