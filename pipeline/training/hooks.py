"""What a run tells the outside: the hook protocol, and the run folder's own record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.training.summary import TrainingResult

METRICS_FILE = "metrics.jsonl"


class Hook(Protocol):
    """Called on rank 0 only. An exception of a hook ends the run."""

    def on_start(self, run_dir: Path, config: RunConfig) -> None:
        """Before the first step, also of a resumed run; run_dir holds config.yaml."""
        ...

    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Every log_every_steps, with means since the last call."""
        ...

    def on_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """After a validation."""
        ...

    def on_end(self, result: TrainingResult) -> None:
        """After the last step, when everything is written."""
        ...


class MetricsFile:
    """Writes metrics.jsonl: one line a report, in the order of steps."""

    def __init__(self, resumed_step: int) -> None:
        """Prepares to write.

        Args:
            resumed_step: Steps done before; lines about later ones will be written again.
        """
        self._resumed_step = resumed_step
        self._path: Path | None = None

    def on_start(self, run_dir: Path, config: RunConfig) -> None:
        """Keeps what an earlier part of the run wrote."""
        self._path = run_dir / METRICS_FILE
        kept = []
        if self._path.is_file() and self._resumed_step:
            for line in self._path.read_text(encoding="utf-8").splitlines():
                # A line that a kill cut short is about a step that is done again.
                if line.endswith("}") and json.loads(line)["step"] <= self._resumed_step:
                    kept.append(line + "\n")
        self._path.write_text("".join(kept), encoding="utf-8")

    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a line."""
        self._write(step, metrics)

    def on_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a line."""
        self._write(step, metrics)

    def on_end(self, result: TrainingResult) -> None:
        """Has nothing to add."""

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        assert self._path is not None, "on_start comes first"
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
