"""What measurements between ranks mean, and what to do about them."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.doctor.check import Check
from jobs.doctor.ranks import AllReduce

_SLOW_BYTES_S = 100e6
"""Gradients of prompts are small: a network of 1 Gbit/s is just enough."""
_SKEW_S = 1.0
_LARGE_SKEW_S = 300.0
"""Object stores refuse requests whose clock is some minutes off."""


def all_reduce_check(measured: AllReduce) -> Check:
    """Judges what ranks measured."""
    who = f"{measured.ranks} ranks over {measured.backend}"
    if measured.ranks == 1:
        return Check("all-reduce", "ok", "one rank: nothing to add up")
    if measured.trouble:
        advice = "set NCCL_DEBUG=INFO and look at NCCL_SOCKET_IFNAME; GPUs need `--ipc=host` or shm"
        return Check("all-reduce", "failed", f"{who}: {measured.trouble}", advice)
    found = (
        f"{who}: 32 MiB in {measured.large_s * 1000:.1f} ms ({measured.bytes_s / 1e9:.2f} GB/s"
        f" a link), 4 KiB in {measured.small_s * 1e6:.0f} µs"
    )
    if measured.bytes_s < _SLOW_BYTES_S:
        advice = (
            "name the fast network: GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME; look for a busy CPU"
        )
        return Check("all-reduce", "warning", found, advice)
    return Check("all-reduce", "ok", found)


def clock_check(offsets: Mapping[str, float]) -> Check:
    """Judges how far clocks are from rank 0's.

    Args:
        offsets: Seconds by which each node is ahead, by its name.
    """
    if not offsets:
        return Check("clocks", "ok", "one node: nothing to compare")
    node = max(offsets, key=lambda name: abs(offsets[name]))
    worst = offsets[node]
    if abs(worst) < _SKEW_S:
        found = f"at most {abs(worst) * 1000:.1f} ms apart on {len(offsets) + 1} nodes"
        return Check("clocks", "ok", found)
    found = f"{node} is {abs(worst):.1f} s {'ahead of' if worst > 0 else 'behind'} rank 0"
    advice = f"let {node} keep time (chrony or another NTP client)"
    return Check("clocks", "failed" if abs(worst) > _LARGE_SKEW_S else "warning", found, advice)
