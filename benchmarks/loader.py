"""Loading for training: ours beside webdataset and a map-style data set, in one run.

    python benchmarks/loader.py --images 2000 --workers 2

Every arm decodes the same JPEGs of 640 x 480 pixels, resizes and normalises them with the same code
and stacks them, with the same number of workers: threads in one arm, processes in the others. Ours
also check every image's SHA-256, check the record, tokenize instruction and target and pad them;
the other arms do not. Files are in the page cache. Rates are of the middle of a run, CPU time is
that of all processes.

Starting and resuming are measured on another data set, of many small shards: seconds from nothing
to the first batch, at the start of an epoch and in its middle. webdataset reaches the middle by
reading what comes before, without decoding it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

# Started by its path, a script sees its own folder only.
sys.path.insert(0, str(Path(__file__).parents[1]))

from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.pictures import write_pictures
from benchmarks.process_tree import run_measured
from benchmarks.work_folder import work_folder
from benchmarks.written_shards import write_shards

ARMS = ("threads", "processes", "webdataset", "image files")
_DISTINCT = 64
"""Pictures that are drawn; samples take them in turn."""
_SMALL_PER_SHARD = 4
_ENV = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


@dataclass(frozen=True)
class Row:
    """One arm's medians."""

    arm: str
    workers: int
    samples_per_s: float
    cpu_s_per_1000: float
    start_s: float
    resume_s: float


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _options(argv)
    with work_folder(options.work_dir, "loader-benchmark") as work:
        try:
            rows = _measure(options, work)
        except RuntimeError as error:
            sys.exit(str(error))
    _report(rows, options)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Samples per second of loading, beside other loaders.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=2000, help="samples of an epoch")
    parser.add_argument("--shards", type=int, default=20, help="shards that they lie in")
    parser.add_argument("--batches", type=int, default=40, help="batches that are timed")
    parser.add_argument("--batch", type=int, default=16, help="samples of a batch")
    parser.add_argument("--image-size", type=int, default=384, help="side after resizing")
    parser.add_argument("--workers", type=int, default=2, help="workers of each arm")
    parser.add_argument("--small-shards", type=int, default=10_000, help="shards to start on")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each arm, in turns")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--work-dir", type=Path, help="folder for the data")
    parser.add_argument("--json", type=Path, help="file for the rows")
    return parser.parse_args(argv)


def _measure(options: argparse.Namespace, work: Path) -> list[Row]:
    write_pictures(work / "pictures", min(_DISTINCT, options.images), 2)
    pictures = [path.read_bytes() for path in sorted((work / "pictures" / "images").iterdir())]
    big, small = work / "big", work / "small"
    _write(big, pictures, options.shards, -(-options.images // options.shards))
    _write(small, [_thumbnail(pictures[0])], options.small_shards, _SMALL_PER_SHARD)
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(options.rounds):
        for arm in options.arms:
            for task, dataset in (("rate", big), ("start", small), ("resume", small)):
                for name, value in _run(options, work, arm, task, dataset).items():
                    key = task if name == "first_s" else name
                    found.setdefault((arm, key), []).append(value)
    return [
        Row(
            arm=arm,
            workers=options.workers,
            samples_per_s=statistics.median(found[arm, "samples_per_s"]),
            cpu_s_per_1000=statistics.median(found[arm, "cpu_s_per_1000"]),
            start_s=statistics.median(found[arm, "start"]),
            resume_s=statistics.median(found[arm, "resume"]),
        )
        for arm in options.arms
    ]


def _thumbnail(picture: bytes) -> bytes:
    sink = BytesIO()
    Image.open(BytesIO(picture)).resize((64, 48)).save(sink, "JPEG")
    return sink.getvalue()


def _write(folder: Path, images: Sequence[bytes], shards: int, per_shard: int) -> None:
    """A data set as shards, and the same images as files: links, so as to fit on a disk."""
    write_shards(folder, images, shards, per_shard)
    files = folder / "files"
    files.mkdir()
    originals = []
    for number, image in enumerate(images):
        originals.append(folder / f"original-{number}.jpg")
        originals[-1].write_bytes(image)
    for position in range(shards * per_shard):
        (files / f"{position:09d}.jpg").symlink_to(originals[position % len(images)])


def _run(
    options: argparse.Namespace, work: Path, arm: str, task: str, dataset: Path
) -> dict[str, float]:
    script, result = str(Path(__file__).with_name("loader_arms.py")), work / "result.json"
    result.unlink(missing_ok=True)
    numbers = (options.workers, options.batch, options.image_size, options.batches)
    command = [sys.executable, script, arm, task, str(dataset), *map(str, numbers), str(result)]
    run_measured(command, _ENV, work / "log.txt")
    values: dict[str, float] = json.loads(result.read_text())
    return values


def _report(rows: list[Row], options: argparse.Namespace) -> None:
    title = (
        f"Loading batches of {options.batch} at {options.image_size} px, {options.workers} workers;"
        f" start and resume on {options.small_shards} shards"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("arm", no_wrap=True)
    for heading in ("samples/s", "CPU s per 1000", "start s", "resume s"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.arm,
            f"{row.samples_per_s:.0f}",
            f"{row.cpu_s_per_1000:.2f}",
            f"{row.start_s:.2f}",
            f"{row.resume_s:.2f}",
        )
    Console(width=None if Console().is_terminal else 120).print(table)
    if options.json is not None:
        content = json.dumps([dataclasses.asdict(row) for row in rows], indent=2)
        options.json.write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
