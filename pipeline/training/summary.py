"""What came out of a run: `summary.json`, the last file that a run writes.

A run folder with this file is finished, and its fingerprints say what happened to the base.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError
from pipeline.training.checkpoint import write_json_whole, writing

SUMMARY_FILE = "summary.json"
FORMAT = "prefixworks.run/1"


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What came out of a run."""

    output_dir: Path
    """Folder of the run."""
    best_metrics: dict[str, float]
    """Metrics of the best validation."""
    final_step: int
    trainable_parameters: int
    """Numbers that training changed; buffers, such as BatchNorm's statistics, are not counted."""
    base_parameters: int
    """Numbers of the base alone."""
    fingerprint_before: str
    """Of the base."""
    fingerprint_after: str
    seconds: float
    """Time of all parts of the run together."""
    stopped_early: bool = False
    """Whether patience ended it before its last step."""

    @property
    def trainable_share(self) -> float:
        """Trained numbers for each number of the base."""
        return self.trainable_parameters / self.base_parameters


def write_summary(result: TrainingResult) -> None:
    """Writes `summary.json` into the run's folder, whole or not at all.

    Raises:
        TrainingError: the file cannot be written.
    """
    record = asdict(result)
    del record["output_dir"]
    path = result.output_dir / SUMMARY_FILE
    with writing(path):
        write_json_whole(path, {"format": FORMAT, **record})


def read_summary(run_dir: Path) -> TrainingResult:
    """Reads what came out of a finished run.

    Raises:
        CheckpointError: the run is not finished, or the file is damaged.
    """
    path = run_dir / SUMMARY_FILE
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: the run is not finished")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if record.pop("format") != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        return TrainingResult(output_dir=run_dir, **record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no summary of a run: {error}") from error
