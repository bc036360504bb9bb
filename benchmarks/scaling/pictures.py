"""The two pictures of docs/design/scale.md: where the time goes, and how fast it gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from benchmarks.scaling.simulation import COMPUTE, KINDS, Outcome

TIME, SPEED = "scale-time.png", "scale-speed.png"
_COLUMNS = 3
_DPI = 80
_COLOURS = dict(
    zip(
        KINDS,
        (
            *("#4c78a8", "#9ecae9", "#f58518", "#ffbf79", "#e45756", "#b279a2"),
            *("#54a24b", "#88d27a", "#eeca3b", "#bab0ac", "#79706e", "#000000"),
        ),
        strict=True,
    )
)


def draw(folder: Path, outcomes: Mapping[str, Sequence[Outcome]]) -> list[Path]:
    """Draw both into a folder.

    Args:
        folder: Is made if missing.
        outcomes: Of each arm, by number of GPUs.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _draw_time(folder / TIME, outcomes)
    _draw_speed(folder / SPEED, outcomes)
    return [folder / TIME, folder / SPEED]


def _draw_time(path: Path, outcomes: Mapping[str, Sequence[Outcome]]) -> None:
    """Stacked shares of the time, a panel for each arm."""
    columns = min(_COLUMNS, len(outcomes))
    rows = -(-len(outcomes) // columns)
    size = (3.6 * columns + 1.5, 2.7 * rows + 0.6)
    figure, panels = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
    for axes in panels.flat[len(outcomes) :]:
        axes.set_visible(False)
    for axes, (arm, found) in zip(panels.flat, outcomes.items(), strict=False):
        names = [str(outcome.gpus) for outcome in found]
        below = [0.0] * len(found)
        for kind in KINDS:
            heights = [outcome.shares[kind] for outcome in found]
            axes.bar(names, heights, bottom=below, color=_COLOURS[kind], label=kind, width=0.75)
            below = [a + b for a, b in zip(below, heights, strict=True)]
        axes.set_title(arm, fontsize=10)
        axes.set_ylim(0, 1)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="center right", fontsize=9, frameon=False)
    figure.supxlabel("GPUs", fontsize=10)
    figure.supylabel("share of the time", fontsize=10)
    figure.tight_layout(rect=(0.02, 0, 1 - 1.5 / size[0], 1))
    _save(figure, path)


def _draw_speed(path: Path, outcomes: Mapping[str, Sequence[Outcome]]) -> None:
    """Samples per second by GPUs, and what perfect scaling of the first arm would be."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    for arm, found in outcomes.items():
        gpus = [outcome.gpus for outcome in found]
        axes.loglog(gpus, [outcome.samples_per_s for outcome in found], marker="o", label=arm)
    first = next(iter(outcomes.values()))
    alone = first[0].samples_per_s / first[0].gpus
    gpus = [outcome.gpus for outcome in first]
    axes.loglog(gpus, [alone * n for n in gpus], color=_COLOURS[COMPUTE], ls=":", label="perfect")
    axes.set_xticks(gpus, [str(n) for n in gpus])
    axes.minorticks_off()
    axes.set_xlabel("GPUs")
    axes.set_ylabel("samples per second, start and end included")
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    # Without its version, the same numbers draw the same bytes.
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    plt.close(figure)
