"""Histograms of a dataset, on one page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data_prep.files import whole_file
from data_prep.inspection.statistics import BOX_STEPS, DatasetStatistics, Distribution

_BINS = 30


def write_histograms(statistics: DatasetStatistics, path: Path) -> None:
    """Draws the distributions of a dataset and writes them as a PNG.

    Raises:
        DataError: The file cannot be written.
    """
    figure = Figure(figsize=(15, 8.5), layout="constrained")
    figure.suptitle(
        f"{statistics.manifest.name}: {statistics.manifest.samples} samples"
        + (f", {statistics.seen} of them seen" * (statistics.seen < statistics.manifest.samples))
    )
    axes = figure.subplots(2, 3).flat
    tasks = statistics.tasks
    _bars(axes[0], statistics.manifest.tasks)
    words = {
        name: task.text_words if task.text_words.counts else task.reference_words
        for name, task in tasks.items()
    }
    _steps(axes[1], words, "words of text (captions: of a reference)")
    _steps(axes[2], {name: task.boxes for name, task in tasks.items()}, "boxes of a sample")
    sides = {name: task.box_sides for name, task in tasks.items()}
    _steps(axes[3], sides, "side of a box, share of the image's", 1 / BOX_STEPS)
    pixels = {"width": statistics.widths, "height": statistics.heights}
    _steps(axes[4], pixels, "pixels of the stored image")
    sizes = [shard.bytes / 1e6 for shard in statistics.manifest.shards]
    axes[5].hist(sizes or [0], bins=_BINS, color="tab:gray")
    axes[5].set(xlabel="MB of a shard", ylabel="shards", xlim=(0, None))
    with whole_file(path) as file:
        # The version of the library is not a property of the dataset.
        figure.savefig(file, format="png", dpi=100, metadata={"Software": None})


def _bars(axes: Any, counts: Mapping[str, int]) -> None:
    names = sorted(counts)
    bars = axes.barh(names, [counts[name] for name in names], color="tab:blue")
    axes.bar_label(bars, padding=3)
    axes.margins(x=0.15)
    axes.set(xlabel="samples of a task")


def _steps(
    axes: Any, distributions: Mapping[str, Distribution], title: str, unit: float = 1
) -> None:
    """One outline a name; those that are zero everywhere are left out."""
    shown = {name: each for name, each in sorted(distributions.items()) if any(each.counts)}
    edges = _edges([value for each in shown.values() for value in each.counts])
    for name, each in shown.items():
        axes.hist(
            [value * unit for value in each.counts],
            weights=list(each.counts.values()),
            bins=[edge * unit for edge in edges],
            histtype="step",
            linewidth=1.5,
            label=name,
        )
    axes.set(xlabel=title)
    if unit == 1:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if shown:
        axes.legend(fontsize="small")


def _edges(values: list[int]) -> list[float]:
    """Edges of bins between whole numbers, the same for all that is drawn together."""
    if not values:
        return [0.0, 1.0]
    low, high = min(values), max(values)
    step = -(-(high - low + 1) // _BINS)
    return [edge - 0.5 for edge in range(low, high + step + 1, step)]
