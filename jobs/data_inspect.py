"""`prefixworks data inspect`: what is in a prepared dataset, as numbers and as pictures."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import track
from rich.table import Table

from data_prep.fields import canonical_json
from data_prep.files import make_folder, write_whole
from data_prep.inspection.charts import write_histograms
from data_prep.inspection.contact_sheet import write_contact_sheet
from data_prep.inspection.statistics import BOX_STEPS, DatasetStatistics, Distribution
from data_prep.prepared import PreparedDataset
from data_prep.schema import Sample
from jobs.cli import run_stage

ItemT = TypeVar("ItemT")

_SAMPLES_PNG, _HISTOGRAMS_PNG, _NUMBERS_JSON = "samples.png", "histograms.png", "statistics.json"
_MOST_SHOWN, _LONGEST = 5, 40
_EPILOG = f"""\
what is written, into DIR.inspect beside the dataset or into --output:
  {_NUMBERS_JSON}    everything that is printed, and more
  {_HISTOGRAMS_PNG}     tasks, words, boxes, image sizes, shard sizes
  {_SAMPLES_PNG}        a random sheet of samples with their texts and boxes

examples:
  prefixworks data inspect data/prepared/train
  prefixworks data inspect data/prepared/train --max-samples=20000 --seed=1
  prefixworks data inspect data/prepared/train --output=look --images=60
  prefixworks data inspect data/prepared/train --json --no-pictures

Records are read one by one and images only for the sheet, so the size of a dataset costs time and
no memory; --max-samples looks at a random part. The same seed looks at the same samples."""


def build_parser() -> argparse.ArgumentParser:
    """The command line of `prefixworks data inspect`."""
    parser = argparse.ArgumentParser(
        prog="prefixworks data inspect",
        description="Statistics, histograms and a sheet of samples of a prepared dataset.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="prepared dataset")
    parser.add_argument("--output", type=Path, help="folder for the files (default DIR.inspect)")
    parser.add_argument(
        "--max-samples", type=int, metavar="N", help="look at N random samples instead of all"
    )
    parser.add_argument(
        "--images", type=int, default=24, metavar="N", help="samples drawn (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice (default %(default)s)")
    parser.add_argument("--no-pictures", action="store_true", help="write no files, only print")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command; a dataset that cannot be read is a DataError."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    for name in ("max_samples", "images"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, found {value}")
    dataset = PreparedDataset(arguments.folder)
    statistics = _statistics(dataset, arguments.max_samples, arguments.seed)
    if arguments.json:
        print(json.dumps(statistics.to_json(), indent=2, ensure_ascii=False))
    else:
        _print(statistics, Console())
    if not arguments.no_pictures:
        folder = arguments.folder.absolute()
        output = arguments.output or folder.with_name(f"{folder.name}.inspect")
        _write(dataset, statistics, output, arguments.images, arguments.seed)
        if not arguments.json:
            print(f"{output}: {_NUMBERS_JSON}, {_HISTOGRAMS_PNG}, {_SAMPLES_PNG}")
    return 0


def chosen(count: int, most: int | None, seed: int) -> list[int] | None:
    """Random rows of an index with count rows, increasing; None for all.

    The number of rows is known, so a draw without replacement does what a reservoir would, and
    reads only the samples that it keeps.
    """
    if most is None or most >= count:
        return None
    return sorted(random.Random(seed).sample(range(count), most))


def _statistics(dataset: PreparedDataset, most: int | None, seed: int) -> DatasetStatistics:
    statistics = DatasetStatistics(dataset)
    places = chosen(len(dataset), most, seed)
    total = len(dataset) if places is None else len(places)
    for row, sample in _progress(dataset.samples(places), total):
        statistics.add(sample, row.image_size)
    return statistics


def _progress(items: Iterable[ItemT], total: int) -> Iterator[ItemT]:
    console = Console(stderr=True)
    yield from track(
        items,
        "reading records",
        total=total,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _write(
    dataset: PreparedDataset, statistics: DatasetStatistics, output: Path, images: int, seed: int
) -> None:
    make_folder(output)
    write_whole(output / _NUMBERS_JSON, canonical_json(statistics.to_json()) + b"\n")
    write_histograms(statistics, output / _HISTOGRAMS_PNG)
    drawn: list[tuple[Sample, bytes]] = [
        (sample, dataset.image(row, sample))
        for row, sample in dataset.samples(chosen(len(dataset), images, seed))
    ]
    write_contact_sheet(drawn, output / _SAMPLES_PNG)


def _print(statistics: DatasetStatistics, console: Console) -> None:
    manifest = statistics.manifest
    size = sum(shard.bytes for shard in manifest.shards)
    console.print(
        f"{manifest.name}: {manifest.samples} samples, {statistics.stored_images} stored images, "
        f"{len(manifest.shards)} shards, {size / 1e6:.1f} MB, "
        f"{manifest.counts['quarantined']} quarantined",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if statistics.seen < manifest.samples:
        console.print(f"the numbers below are of {statistics.seen} random samples")
    console.print(_task_table(statistics))
    for name, task in sorted(statistics.tasks.items()):
        top = ", ".join(f"{_plain(text)} ({n})" for text, n in task.texts.most_common(_MOST_SHOWN))
        if top:
            console.print(f"{name}: {top}", markup=False, highlight=False)
    for title, each, unit in (
        ("image width", statistics.widths, "px"),
        ("image height", statistics.heights, "px"),
        ("image size", statistics.image_kib, "KiB"),
    ):
        facts = each.summary()
        if facts:
            console.print(
                f"{title:13} {facts['min']:g} to {facts['max']:g} {unit}, "
                f"median {facts['median']:g}, mean {facts['mean']:.1f}",
                highlight=False,
            )


def _task_table(statistics: DatasetStatistics) -> Table:
    table = Table(caption="median (95th percentile)", caption_justify="left")
    table.add_column("task", no_wrap=True)
    for title in ("samples", "words", "captions", "answers", "boxes", "box side"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, task in sorted(statistics.tasks.items()):
        words = task.text_words if task.text_words.counts else task.reference_words
        table.add_row(
            name,
            str(task.samples),
            _cell(words),
            _cell(task.references),
            _cell(task.answers),
            _cell(task.boxes),
            _cell(task.box_sides, 1 / BOX_STEPS),
        )
    return table


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:_LONGEST])


def _cell(distribution: Distribution, unit: float = 1) -> str:
    if not any(distribution.counts):
        return "-"
    facts = distribution.summary(unit)
    return f"{facts['median']:.3g} ({facts['p95']:.3g})"


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
