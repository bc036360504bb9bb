"""The scores that a run's prompt is registered with: of its evaluation, else of its validation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import RegistryError
from pipeline.registry.record import DataUse

EVALUATION_REPORT = Path("evaluation") / "report.json"
"""Where `prefixworks evaluate` leaves its report in a run folder."""
CURVES = Path("pictures")
"""Where a run leaves pictures of its training."""
MAX_PICTURES = 8
"""Pictures that an artifact takes along; they are no part of what a prediction needs."""
BEST_STATE = Path("best") / "state.json"
BEST_WEIGHTS = Path("best") / "trainable.safetensors"


@dataclass(frozen=True, kw_only=True)
class RunScores:
    """Scores of a run's best checkpoint and what they were measured on."""

    metrics: dict[str, float]
    data: tuple[DataUse, ...] = ()
    """The dataset of the evaluation; empty for validation scores, whose data the run names."""
    pictures: tuple[Path, ...] = ()


def run_scores(run_dir: Path) -> RunScores:
    """Reads a run's scores.

    A report that is older than the best checkpoint says nothing about it, and is left out.

    Raises:
        RegistryError: the report or the checkpoint's state cannot be read.
    """
    report = run_dir / EVALUATION_REPORT
    if is_newer(report, run_dir / BEST_WEIGHTS):
        values = _read(report)
        try:
            dataset = values["dataset"]
            use = DataUse(
                role="evaluation",
                name=dataset["name"],
                digest=dataset["digest"],
                samples=values["samples"],
            )
            metrics = {name: float(value) for name, value in values["metrics"].items()}
        except (KeyError, TypeError, ValueError) as error:
            raise RegistryError(f"{report} is no evaluation report: {error!r}") from error
        pictures = sorted(report.parent.glob("*.png"))
        return RunScores(metrics=metrics, data=(use,), pictures=_with_curves(run_dir, pictures))
    state = run_dir / BEST_STATE
    values = _read(state).get("metrics", {}) if state.is_file() else {}
    return RunScores(
        metrics={name: float(value) for name, value in values.items()},
        pictures=_with_curves(run_dir, []),
    )


def _with_curves(run_dir: Path, pictures: list[Path]) -> tuple[Path, ...]:
    """The evaluation's pictures, then the training's own, as far as there is room."""
    known = {picture.name for picture in pictures}
    curves = [path for path in sorted((run_dir / CURVES).glob("*.png")) if path.name not in known]
    return (*pictures, *curves)[:MAX_PICTURES]


def is_newer(path: Path, other: Path) -> bool:
    """Whether a file exists and is not older than another, where that exists."""
    if not path.is_file():
        return False
    return not other.is_file() or path.stat().st_mtime_ns >= other.stat().st_mtime_ns


def _read(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RegistryError(f"{path} cannot be read: {error}") from error
    return values
