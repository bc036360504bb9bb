"""A run's curves on one page: losses, learning rate, and the share of time spent on waiting."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

Points = list[tuple[int, float]]
"""Step and value."""

_MOST_POINTS = 2_000
"""Points of a curve; of more, evenly spread ones are drawn."""


def read_points(metrics_file: Path) -> dict[str, Points]:
    """The metrics of a run by name, from its own record; lines that are cut short are left out."""
    points: dict[str, Points] = {}
    for line in metrics_file.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
            step = int(record.pop("step"))
        except (ValueError, KeyError, AttributeError, TypeError):
            continue
        for name, value in record.items():
            if isinstance(value, int | float) and math.isfinite(value):
                points.setdefault(name, []).append((step, float(value)))
    return points


def draw_curves(points: Mapping[str, Points], title: str, path: Path) -> None:
    """Draws the curves and writes them as a PNG that appears whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    figure.suptitle(title)
    loss, rate, wait = figure.subplots(1, 3)
    for name, color, mark in (
        ("train/loss", "tab:blue", None),
        ("validation/loss", "tab:orange", "o"),
    ):
        _line(loss, points.get(name, []), name, color=color, marker=mark)
    loss.set(ylabel="loss")
    if loss.get_lines():
        loss.legend()
    _line(rate, points.get("train/lr", []), "train/lr", color="tab:green")
    rate.set(ylabel="learning rate", ylim=(0, None))
    _line(wait, points.get("train/data_wait_share", []), "train/data_wait_share", color="tab:red")
    wait.set(ylabel="time spent waiting for data", ylim=(0, 1))
    wait.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (loss, rate, wait):
        axes.set(xlabel="step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.new")
    # The version of the library is not a property of the run.
    figure.savefig(scratch, format="png", dpi=100, metadata={"Software": None})
    scratch.replace(path)


def _line(axes: Any, points: Sequence[tuple[int, float]], label: str, **style: Any) -> None:
    if not points:
        return
    every = -(-len(points) // _MOST_POINTS)
    shown = [*points[:-1:every], points[-1]]
    axes.plot(*zip(*shown, strict=True), label=label, markersize=4, **style)
