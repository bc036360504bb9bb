"""Preparing pictures: ours beside img2dataset and Ray Data, on the same files in the same run.

    python benchmarks/prepare.py --images 5000 --peer-venv ~/.cache/img2dataset

Every arm reads the same JPEGs of 640 x 480 pixels from a folder, fits them to the same size at the
same JPEG quality and writes WebDataset shards, with the same number of processes. An arm is a
program of its own that is started, does everything and ends; its time is the whole of that, with
the start of Ray or of a pool of processes and the reading of annotations. CPU time and memory are
those of all its processes.

What starting takes is measured the same way for every arm, by running it on a few pictures. The
columns after "start" are the long run less the short one, per picture that was more: the rate
that a large dataset would see. Arms take turns, with the pictures in the page cache.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Started by its path, a script sees its own folder only.
sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from benchmarks.pictures import write_pictures
from benchmarks.process_tree import Usage, run_measured
from benchmarks.work_folder import work_folder

ARMS = ("prefixworks", "img2dataset", "ray-data")
MIB = 2**20
_PEER = ("img2dataset==1.47.0",)
_FEW = 8
_ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's workers would give way to everything else on the machine; the other's would not.
    "RAY_worker_niceness": "0",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Row:
    """One arm with one number of workers. Steady figures are None when the runs were too short."""

    arm: str
    workers: int
    images: int
    images_per_s: float
    """Whole run, start included."""
    cpu_s_per_1000: float
    """Whole run, start included."""
    peak_mib: float
    """Highest sum of the resident memory of all processes; shared pages count in each."""
    start_s: float
    """Whole run on a few pictures."""
    steady_images_per_s: float | None
    steady_cpu_s_per_1000: float | None


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _options(argv)
    with work_folder(options.work_dir, "prepare-benchmark") as work:
        try:
            rows = _measure(options, work)
        except RuntimeError as error:
            sys.exit(str(error))
    _report(rows, options)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Images per second of preparing pictures, beside other tools.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=5000, help="pictures")
    parser.add_argument("--side", type=int, default=480, help="longer side of stored images")
    parser.add_argument("--quality", type=int, default=95, help="JPEG quality of stored images")
    parser.add_argument("--shard-size", type=int, default=250, help="pictures of a shard")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="processes")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each arm; the best counts")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="only these arms")
    parser.add_argument(
        "--peer-venv",
        type=Path,
        help="environment of img2dataset, made there if missing; by default a temporary one",
    )
    parser.add_argument("--work-dir", type=Path, help="folder of pictures and output")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    options = parser.parse_args(argv)
    if options.images <= _FEW:
        parser.error(f"--images must be more than {_FEW}")
    return options


def _measure(options: argparse.Namespace, work: Path) -> list[Row]:
    python = dict.fromkeys(options.arms, sys.executable)
    if "img2dataset" in python:
        python["img2dataset"] = str(_peer(options.peer_venv or work / "peer", work))
    for count in (_FEW, options.images):
        write_pictures(work / f"pictures-{count}", count, len(os.sched_getaffinity(0)))
    found: dict[tuple[str, int, int], list[Usage]] = {}
    for _ in range(options.rounds):
        for workers in options.workers:
            for arm in options.arms:
                for count in (_FEW, options.images):
                    usage = _run(options, work, python[arm], arm, workers, count)
                    found.setdefault((arm, workers, count), []).append(usage)
    pairs = [(arm, workers) for arm in options.arms for workers in options.workers]
    return [
        _row(*pair, options.images, found[*pair, _FEW], found[*pair, options.images])
        for pair in pairs
    ]


def _run(
    options: argparse.Namespace, work: Path, python: str, arm: str, workers: int, count: int
) -> Usage:
    output = work / "output"
    numbers = (workers, options.side, options.quality, options.shard_size)
    script = str(Path(__file__).with_name("prepare_arms.py"))
    command = [python, script, arm, str(work / f"pictures-{count}"), str(output)]
    usage = run_measured([*command, *map(str, numbers)], _ENV, work / "log.txt")
    stored = _stored(output)
    shutil.rmtree(output)
    if stored != count:
        raise RuntimeError(f"{arm} stored {stored} of {count} pictures")
    return usage


def _stored(output: Path) -> int:
    """Pictures in all tars of a folder."""
    listed = 0
    for path in output.rglob("*.tar"):
        done = subprocess.run(["tar", "tf", path], capture_output=True, text=True, check=True)
        listed += sum(name.endswith(".jpg") for name in done.stdout.split())
    return listed


def _peer(folder: Path, work: Path) -> Path:
    """The Python of img2dataset's environment, which is made if it is missing."""
    python = folder / "bin" / "python"
    if not python.exists():
        run_measured([sys.executable, "-m", "venv", str(folder)], {}, work / "venv.txt")
    try:
        run_measured([str(python), "-m", "pip", "install", "-q", *_PEER], {}, work / "pip.txt")
    except RuntimeError as error:
        message = f"img2dataset cannot be installed; leave it out with --arms: {error}"
        raise RuntimeError(message) from error
    return python


def _row(arm: str, workers: int, images: int, few: list[Usage], all_of_them: list[Usage]) -> Row:
    wall, cpu = (min(getattr(u, n) for u in all_of_them) for n in ("wall_s", "cpu_s"))
    start_wall, start_cpu = (min(getattr(u, n) for u in few) for n in ("wall_s", "cpu_s"))
    more = images - _FEW
    return Row(
        arm=arm,
        workers=workers,
        images=images,
        images_per_s=images / wall,
        cpu_s_per_1000=1000 * cpu / images,
        peak_mib=max(u.peak_bytes for u in all_of_them) / MIB,
        start_s=start_wall,
        steady_images_per_s=more / (wall - start_wall) if wall > start_wall else None,
        steady_cpu_s_per_1000=1000 * (cpu - start_cpu) / more if cpu > start_cpu else None,
    )


def _report(rows: list[Row], options: argparse.Namespace) -> None:
    title = (
        f"Preparing {options.images} JPEGs of 640 x 480 to {options.side} px,"
        f" quality {options.quality}, shards of {options.shard_size}"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("arm", no_wrap=True)
    for heading in (
        *("workers", "images/s", "CPU s per 1000", "peak MiB", "start s"),
        *("images/s after start", "CPU s per 1000 after start", "scaling"),
    ):
        table.add_column(heading, justify="right")
    first: dict[str, Row] = {}
    for row in rows:
        base = first.setdefault(row.arm, row)
        table.add_row(
            row.arm,
            str(row.workers),
            f"{row.images_per_s:.0f}",
            f"{row.cpu_s_per_1000:.2f}",
            f"{row.peak_mib:.0f}",
            f"{row.start_s:.1f}",
            _shown(row.steady_images_per_s, "{:.0f}"),
            _shown(row.steady_cpu_s_per_1000, "{:.2f}"),
            _scaling(row, base),
        )
    Console(width=None if Console().is_terminal else 140).print(table)
    if options.json is not None:
        content = json.dumps([dataclasses.asdict(row) for row in rows], indent=2)
        options.json.write_text(content + "\n", encoding="utf-8")


def _shown(value: float | None, form: str) -> str:
    return "too short" if value is None else form.format(value)


def _scaling(row: Row, base: Row) -> str:
    if row.steady_images_per_s is None or base.steady_images_per_s is None:
        return "too short"
    return f"x {row.steady_images_per_s / base.steady_images_per_s:.2f}"


if __name__ == "__main__":
    main()
