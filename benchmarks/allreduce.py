"""Summing a vector over processes of this machine with gloo, by its size.

    python benchmarks/allreduce.py --processes 2 --values 2 1000000 4915200

Sizes are what the ranks of a run sum: two values before each step, and the gradients of what is
trained. Processes on one machine meet through its memory, so this tells what the library costs and
nothing of a network.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

_WARM_UP = 2
_PATIENCE = timedelta(seconds=60)
"""How long a process waits for one that may be gone."""


@dataclass(frozen=True)
class Row:
    """One size. Times are in seconds."""

    processes: int
    bytes: int
    median_s: float
    fastest_s: float
    gb_per_s: float
    """Bytes that a process sends, and receives, in the median time."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _options(argv)
    try:
        times = measure(options.processes, options.values, options.rounds)
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    rows = [_row(options.processes, 4 * values, found) for values, found in times.items()]
    table = Table(title=f"All-reduce, gloo, {options.rounds} rounds", title_justify="left")
    for heading in ("processes", "bytes", "median ms", "fastest ms", "GB/s"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            f"{row.processes}",
            f"{row.bytes}",
            f"{row.median_s * 1e3:.3f}",
            f"{row.fastest_s * 1e3:.3f}",
            f"{row.gb_per_s:.2f}",
        )
    Console().print(table)
    print("load of the machine, 1 minute:", os.getloadavg()[0])
    if options.json is not None:
        text = json.dumps([asdict(row) for row in rows], indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="All-reduce between processes of this machine.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--processes", type=int, default=2, help="processes that meet")
    parser.add_argument("--rounds", type=int, default=20, help="times that each size is summed")
    parser.add_argument(
        "--values",
        type=int,
        nargs="+",
        default=[4, 10_000, 1_000_000, 4_915_200, 20_000_000],
        help="float32 values",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    options = parser.parse_args(argv)
    if min(options.processes - 1, options.rounds, *options.values) < 1:
        parser.error("there must be two processes, and one round and one value, at least")
    return options


def _row(processes: int, size: int, times: Sequence[float]) -> Row:
    median = statistics.median(times)
    sent = 2 * (processes - 1) / processes * size
    return Row(processes, size, median, min(times), sent / median / 1e9)


def measure(processes: int, sizes: Sequence[int], rounds: int) -> dict[int, list[float]]:
    """Time all-reduces of float32 vectors, as the first process sees them.

    Args:
        processes: That meet.
        sizes: Values of each vector.
        rounds: Times that each is summed, after a warm-up.

    Returns:
        The seconds of each round, by size.

    Raises:
        RuntimeError: a process broke, or a sum was wrong.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        place = f"file://{folder}/meeting"
        ranks = [
            context.Process(
                target=_rank,
                args=(place, rank, processes, tuple(sizes), rounds, theirs if rank == 0 else None),
                daemon=True,
            )
            for rank in range(processes)
        ]
        for process in ranks:
            process.start()
        theirs.close()
        try:
            found: dict[int, list[float]] = ours.recv()
        except EOFError:
            raise RuntimeError("a process broke; its own words stand above") from None
        finally:
            for process in ranks:
                process.join()
    return found


def _rank(
    place: str,
    rank: int,
    processes: int,
    sizes: Sequence[int],
    rounds: int,
    report: Connection | None,
) -> None:
    """One process's part."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=place, rank=rank, world_size=processes, timeout=_PATIENCE
    )
    times = {size: _times(size, rounds, processes) for size in sizes}
    if report is not None:
        report.send(times)
    dist.destroy_process_group()


def _times(size: int, rounds: int, processes: int) -> list[float]:
    vector, found = torch.empty(size), []
    for turn in range(_WARM_UP + rounds):
        vector.fill_(1.0)
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(vector)
        ended = time.perf_counter()
        if turn >= _WARM_UP:
            found.append(ended - began)
        if float(vector[-1]) != processes:
            raise RuntimeError(f"the sum of {processes} ones came out as {float(vector[-1])}")
    return found


if __name__ == "__main__":
    main()
