"""One training run of `cost_to_quality.py`, with what each validation found and what it had cost.

Cost is that of training steps alone: starting and validating take as long in every arm.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

# Started by its path, a script sees its own folder only.
sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.config import RunConfig, parse
from pipeline.training.checkpoint import write_json_whole
from pipeline.training.summary import TrainingResult
from pipeline.training.trainer import train


@dataclass(frozen=True, kw_only=True)
class Point:
    """What a validation found after a number of steps."""

    step: int
    score: float
    nll: float
    cpu_s: float
    """CPU time of this process in the steps so far."""
    wall_s: float
    """Seconds of these steps."""


class CurveHook:
    """Writes the curve of a run when it has ended."""

    def __init__(self, file: Path, metric: str) -> None:
        self._file, self._metric = file, metric
        self._points: list[Point] = []
        self._cpu_s = self._wall_s = 0.0
        self._mark = (0.0, 0.0)

    def on_start(self, run_dir: Path, config: RunConfig) -> None:
        """Begins to count."""
        self._mark = _now()

    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Counts the steps that it reports; a validation comes after it."""
        cpu, wall = _now()
        self._cpu_s += cpu - self._mark[0]
        self._wall_s += wall - self._mark[1]
        self._mark = cpu, wall

    def on_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a point, and leaves out what the validation took."""
        self._points.append(
            Point(
                step=step,
                score=metrics[self._metric],
                nll=metrics["validation/nll"],
                cpu_s=self._cpu_s,
                wall_s=self._wall_s,
            )
        )
        self._mark = _now()

    def on_end(self, result: TrainingResult) -> None:
        """Writes the curve, whole or not at all."""
        record = {
            "steps": result.final_step,
            "trainable": result.trainable_parameters,
            "points": [asdict(point) for point in self._points],
        }
        write_json_whole(self._file, record)


def main(argv: Sequence[str]) -> None:
    """Trains; the first argument is the file for the curve, the others are those of `train`."""
    config, _ = parse(RunConfig, argv[1:], prog="quality_arm", description=__doc__ or "")
    assert config.training.best_metric is not None, "the study names the metric"
    train(config, [CurveHook(Path(argv[0]), config.training.best_metric)])


def _now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


if __name__ == "__main__":
    main(sys.argv[1:])
