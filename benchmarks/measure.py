"""Arms measured side by side, each in a process of its own.

Arms take turns, one run each in a round, so that what else the machine does falls on all of them.
In every round a matrix product is timed too, and its best rate of all rounds is the ceiling that
the arms are held against. Memory is the highest that the arm's own process ever held.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.settings import Settings
from pipeline.training.flops import count_flops

MIB = 2**20
_CEILING_SIDE = {"cpu": 2048, "cuda": 8192}
_CEILING_RUNS = 5
_WARM_UP_RUNS = 1


class Work(NamedTuple):
    """One arm, ready to run."""

    run: Callable[[], object]
    times: int = 1
    """Equal parts of one run; what is reported is one part."""
    prepare: Callable[[], object] = lambda: None
    """Runs before each run, untimed."""


Build = Callable[[Settings], Work]


@dataclass(frozen=True)
class Row:
    """One arm's result. Times are in seconds, memory in MiB."""

    arm: str
    arch: str
    image_size: int
    batch: int
    prompt_length: int
    median_s: float
    cpu_s: float
    """Of all threads, median."""
    peak_mib: float
    """Highest memory of the process; on an accelerator, highest that was allocated there."""
    peak_above_weights_mib: float
    """The same without what it held when the model stood and nothing had run."""
    flops: int
    ceiling_share: float
    """Rate of the arm, as a share of the matrix product's best."""


class _Arm:
    """The parent's end of an arm's process."""

    def __init__(self, name: str, build: Build, settings: Settings) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, build, settings), daemon=True, name=name
        )
        self._process.start()
        theirs.close()
        self.samples: list[tuple[float, float]] = []

    def ask(self, question: str) -> Any:
        """Ask and wait for the answer.

        Raises:
            RuntimeError: the process ended instead.
        """
        self._pipe.send(question)
        try:
            return self._pipe.recv()
        except EOFError as error:
            self._process.join()
            status = self._process.exitcode
            raise RuntimeError(f"arm {self.name!r} ended with status {status}") from error

    def stop(self) -> None:
        self._pipe.close()
        self._process.join()


def measure(arms: Mapping[str, Build], settings: Settings) -> list[Row]:
    """Measure arms, in the order given.

    Raises:
        RuntimeError: an arm's process ended.
    """
    ceiling = _Arm("ceiling", _matrix_product, settings)
    running = [_Arm(name, build, settings) for name, build in arms.items()]
    try:
        for arm in [ceiling, *running]:
            arm.ask("warm up")
        for _ in range(settings.repeats):
            ceiling.samples += [ceiling.ask("run") for _ in range(_CEILING_RUNS)]
            for arm in running:
                arm.samples.append(arm.ask("run"))
        best_rate = ceiling.ask("flops") / min(seconds for seconds, _ in ceiling.samples)
        return [_row(arm, settings, best_rate) for arm in running]
    finally:
        for arm in [ceiling, *running]:
            arm.stop()


def report(title: str, rows: list[Row], settings: Settings, notes: list[str]) -> None:
    """Print the table, and write the rows where the settings say."""
    table = Table(title=f"{title}: {settings}", title_justify="left")
    table.add_column("arm", no_wrap=True)
    headings = ("median s", "CPU s", "peak MiB", "above weights", "GFLOP", "of ceiling", "memory")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    first = rows[0]
    for row in rows:
        table.add_row(
            row.arm,
            f"{row.median_s:.3f}",
            f"{row.cpu_s:.3f}",
            f"{row.peak_mib:.0f}",
            f"{row.peak_above_weights_mib:.0f}",
            f"{row.flops / 1e9:.1f}",
            f"{row.ceiling_share:.0%}",
            f"x {row.peak_above_weights_mib / max(first.peak_above_weights_mib, 1):.2f}",
        )
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    for note in notes:
        console.print(note)
    if settings.json is not None:
        rows_of_json = [dataclasses.asdict(row) for row in rows]
        settings.json.write_text(json.dumps(rows_of_json, indent=2) + "\n", encoding="utf-8")


def _row(arm: _Arm, settings: Settings, best_rate: float) -> Row:
    seconds = statistics.median(seconds for seconds, _ in arm.samples)
    peak, weights = arm.ask("memory")
    flops = arm.ask("flops")
    return Row(
        arm=arm.name,
        arch=settings.arch,
        image_size=settings.image_size,
        batch=settings.batch,
        prompt_length=settings.prompt_length,
        median_s=seconds,
        cpu_s=statistics.median(cpu for _, cpu in arm.samples),
        peak_mib=peak / MIB,
        peak_above_weights_mib=(peak - weights) / MIB,
        flops=flops,
        ceiling_share=flops / seconds / best_rate,
    )


def _serve(pipe: Connection, build: Build, settings: Settings) -> None:
    """The arm's process: builds its work and does what it is asked, until nobody asks."""
    torch.set_num_threads(settings.threads)
    work = build(settings)
    weights = _memory_now(settings)
    while True:
        try:
            question = pipe.recv()
        except EOFError:
            return
        if question == "warm up":
            for _ in range(_WARM_UP_RUNS):
                _timed(work, settings)
            pipe.send(None)
        elif question == "run":
            pipe.send(_timed(work, settings))
        elif question == "memory":
            pipe.send((_highest_memory(settings), weights))
        else:
            work.prepare()
            pipe.send(count_flops(work.run) // work.times)


def _timed(work: Work, settings: Settings) -> tuple[float, float]:
    work.prepare()
    _finish(settings)
    began, cpu_began = time.perf_counter(), time.process_time()
    work.run()
    _finish(settings)
    ended, cpu_ended = time.perf_counter(), time.process_time()
    return (ended - began) / work.times, (cpu_ended - cpu_began) / work.times


def _finish(settings: Settings) -> None:
    if settings.device.startswith("cuda"):
        torch.cuda.synchronize(settings.device)


def _memory_now(settings: Settings) -> int:
    """Bytes held now."""
    if settings.device.startswith("cuda"):
        return int(torch.cuda.memory_allocated(settings.device))
    return int(psutil.Process().memory_info().rss)


def _highest_memory(settings: Settings) -> int:
    """Most bytes ever held."""
    if settings.device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(settings.device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _matrix_product(settings: Settings) -> Work:
    """A large square product in the arms' precision: what the machine can do at best."""
    side = _CEILING_SIDE["cuda" if settings.device.startswith("cuda") else "cpu"]
    left, right, out = (
        torch.rand(side, side, dtype=settings.torch_dtype, device=settings.device) for _ in range(3)
    )
    return Work(lambda: torch.mm(left, right, out=out))
