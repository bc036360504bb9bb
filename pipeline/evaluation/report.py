"""What an evaluation found: metrics and every prediction, as a table, JSON and rows."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from data_prep.schema import Sample
from pipeline.tasks.base import Prediction
from pipeline.tasks.registry import get_task

REPORT_FORMAT = "prefixworks.evaluation/1"


@dataclass(frozen=True, kw_only=True)
class PredictionRow:
    """One sample with its answer."""

    position: int
    """Place of the sample in its dataset."""
    sample: Sample
    prediction: Prediction

    @property
    def truth(self) -> str | None:
        """The right answer in words; None where it is a box."""
        sample = self.sample
        if sample.task == "vqa":
            return ", ".join(f"{answer.text} ({answer.count})" for answer in sample.answers)
        if sample.task == "caption":
            return sample.references[0] if sample.references else None
        if sample.task == "detection":
            return ", ".join(str(box.label) for box in sample.boxes)
        return sample.label

    def to_json(self) -> dict[str, Any]:
        """The row as plain JSON values; boxes are in pixels of the stored image."""
        sample, prediction = self.sample, self.prediction
        row: dict[str, Any] = {
            "uid": sample.uid,
            "task": sample.task,
            "instruction": sample.instruction,
            "text": prediction.text,
            "box": list(prediction.box) if prediction.box else None,
            "score": prediction.score,
            "true_text": self.truth,
            "true_boxes": [list(box.box) for box in sample.boxes],
        }
        if prediction.objects:
            row["objects"] = [[label, list(box)] for label, box in prediction.objects]
        return row


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """The result of one evaluation."""

    metrics: dict[str, float]
    """Scores by `<task>/<metric>`."""
    samples: int
    """Samples that were answered."""
    predictions: list[PredictionRow]
    """Every answer, task by task in the order of the dataset."""
    samples_per_task: dict[str, int] = field(default_factory=dict)
    """Samples that each task's metrics are over."""
    seconds: float = 0.0
    """Wall-clock time of reading and answering."""

    @property
    def headlines(self) -> dict[str, float]:
        """The one metric of each task that counts."""
        names = [get_task(task).metric for task in self.samples_per_task]
        return {name: self.metrics[name] for name in names}

    def of_task(self, task: str) -> EvaluationReport:
        """The part of the report about one task; the time stays that of the whole."""
        rows = [row for row in self.predictions if row.sample.task == task]
        return EvaluationReport(
            metrics={n: value for n, value in self.metrics.items() if n.startswith(f"{task}/")},
            samples=len(rows),
            predictions=rows,
            samples_per_task={task: len(rows)},
            seconds=self.seconds,
        )

    def to_json(self, context: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The report as plain JSON values.

        Args:
            context: What was evaluated (dataset, base, prompt, settings), put in front.
        """
        return {
            "format": REPORT_FORMAT,
            **(context or {}),
            "metrics": self.metrics,
            "samples": self.samples,
            "samples_per_task": self.samples_per_task,
            "seconds": round(self.seconds, 3),
            "predictions": [row.to_json() for row in self.predictions],
        }

    def table(self, title: str) -> Table:
        """The metrics for a terminal, headlines in bold."""
        table = Table(title=title, title_justify="left")
        table.add_column("task")
        table.add_column("metric")
        table.add_column("score", justify="right")
        table.add_column("samples", justify="right")
        for name, value in self.metrics.items():
            task, _, metric = name.partition("/")
            style = "bold" if name in self.headlines else None
            count = self.samples_per_task.get(task, 0)
            table.add_row(task, metric, score_text(name, value), str(count), style=style)
        return table


def score_text(name: str, value: float) -> str:
    """A score as people read it: CIDEr as it is, everything else in percent."""
    return f"{value:.3f}" if name.endswith("cider") else f"{100 * value:.1f}%"


def write_report(
    path: str | Path, report: EvaluationReport, context: Mapping[str, Any] | None = None
) -> None:
    """Writes a report as JSON; the file appears whole or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    text = json.dumps(report.to_json(context), indent=1, ensure_ascii=False, allow_nan=False)
    with scratch.open("w", encoding="utf-8") as stream:
        stream.write(text + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    scratch.replace(target)
