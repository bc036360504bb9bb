"""The end of the demo: predictions of the registered prompts, and what was gained, in one table."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipeline.errors import DataError, TrainingError
from pipeline.evaluation.pictures import picture_sheet
from pipeline.evaluation.report import PredictionRow
from pipeline.registry.scoring import predict_registered
from pipeline.tasks.base import Prediction
from pipeline.tasks.registry import get_task
from pipeline.tracking.config import StoreLocation, TrackingConfig, resolve_store
from pipeline.training.checkpoint import write_json_whole
from pipeline.training.data import ShardReader
from pipeline.training.summary import read_summary

REPORT_FILE = "demo-report.json"
PICTURE_FILE = "prediction.png"
_PICTURES_PER_TASK = 4
_TEST = Path("data") / "prepared" / "downstream_test"
_IMAGES = Path("data") / "raw" / "downstream" / "images"


def predict(folder: Path, tasks: Sequence[str]) -> None:
    """Answers for image files of the test split with the champions, and draws the answers.

    Args:
        folder: The demo's.
        tasks: Tasks with a champion each.

    Raises:
        RegistryError: a champion is missing or does not fit the base.
        DataError: an image is missing.
    """
    rows, images = [], []
    with ShardReader(folder / _TEST) as reader:
        for task in tasks:
            places = [at for at, name in enumerate(reader.tasks) if name == task]
            # From the whole split, so that the pictures are not all of one scene.
            chosen = places[:: -(-len(places) // _PICTURES_PER_TASK)]
            samples = [reader.read(place)[0] for place in chosen]
            files = [_image_file(folder, sample.image.name) for sample in samples]
            asked = pd.DataFrame(
                {
                    "image": [str(file) for file in files],
                    "text": [sample.text for sample in samples],
                }
            )
            answers = predict_registered(f"demo_{task}@champion", asked, _store(folder))
            for place, sample, file, answer in zip(
                chosen, samples, files, answers.to_dict(orient="records"), strict=True
            ):
                rows.append(
                    PredictionRow(position=place, sample=sample, prediction=_prediction(answer))
                )
                with Image.open(file) as image:
                    images.append(image.convert("RGB"))
    picture_sheet(rows, images).save(folder / PICTURE_FILE, format="PNG", optimize=True)


def write_report(
    folder: Path, tasks: Sequence[str], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Gathers what the stages left behind and writes `demo-report.json`.

    Args:
        folder: The demo's.
        tasks: Tasks with a run each.
        seconds: Wall-clock time of each stage.

    Returns:
        The report.

    Raises:
        TrainingError: the base that came out of a training is not the one that was scored.
        CheckpointError: a training run is not finished.
        DataError: an evaluation's report is missing.
    """
    zero_shot = _read(folder / "runs" / "zero_shot" / "report.json")
    before = zero_shot["base_fingerprint"]
    runs = {task: folder / "runs" / f"demo_{task}" for task in tasks}
    results = {task: read_summary(run) for task, run in runs.items()}
    for task, result in results.items():
        if {result.fingerprint_before, result.fingerprint_after} != {before}:
            raise TrainingError(
                f"the base of {runs[task]} is not the one that was scored: {before},"
                f" {result.fingerprint_before}, {result.fingerprint_after}"
            )
    gains = {
        task: {
            "metric": get_task(task).metric,
            "zero_shot": zero_shot["metrics"][get_task(task).metric],
            "tuned": _read(run / "evaluation" / "report.json")["metrics"][get_task(task).metric],
            "trainable_parameters": results[task].trainable_parameters,
            "artifact_bytes": _size(run / "prompt"),
        }
        for task, run in runs.items()
    }
    report = {
        "tasks": gains,
        "base_fingerprint": {"before": before, "after": results[tasks[-1]].fingerprint_after},
        "base_parameters": results[tasks[0]].base_parameters,
        "trainable_share": results[tasks[0]].trainable_share,
        "seconds": dict(seconds),
    }
    write_json_whole(folder / REPORT_FILE, report)
    return report


def show(report: Mapping[str, Any], folder: Path) -> None:
    """Prints the report as tables, with what to look at next."""
    console = Console()
    console.print()
    console.print(_gains(report))
    console.print(_times(report["seconds"]))
    fingerprints = report["base_fingerprint"]
    # The report is only written when both are the same.
    console.print(f"base unchanged: {fingerprints['after']}", soft_wrap=True)
    database = _store(folder).uri
    mlflow = os.path.relpath(Path(sys.executable).parent / "mlflow")
    for title, line in (
        ("prediction", str(folder / PICTURE_FILE)),
        ("report", str(folder / REPORT_FILE)),
        ("look around", shlex.join([mlflow, "ui", "--backend-store-uri", database])),
    ):
        console.print(f"{title}: {line}", soft_wrap=True, highlight=False)


def _gains(report: Mapping[str, Any]) -> Table:
    table = Table(title="Frozen base against prompt-tuned, downstream test", box=SIMPLE_HEAD)
    table.add_column("metric", no_wrap=True)
    for name in ("zero-shot", "tuned", "gain", "trained", "of base", "kB"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report["tasks"].values():
        before, after = 100 * row["zero_shot"], 100 * row["tuned"]
        share = row["trainable_parameters"] / report["base_parameters"]
        table.add_row(
            row["metric"],
            f"{before:.1f}%",
            f"{after:.1f}%",
            f"{after - before:+.1f}",
            f"{row['trainable_parameters']:,}",
            f"{100 * share:.1f}%",
            f"{row['artifact_bytes'] / 1000:,.0f}",
        )
    return table


def _times(seconds: Mapping[str, float]) -> Table:
    table = Table(title="Seconds by stage", box=SIMPLE_HEAD)
    table.add_column("stage")
    table.add_column("s", justify="right")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.1f}")
    table.add_section()
    table.add_row("together", f"{sum(seconds.values()):.1f}")
    return table


def _image_file(folder: Path, name: str) -> Path:
    """The raw image of a sample; REFER's names begin with the split, the other readers' don't."""
    images = (folder / _IMAGES).resolve()
    for file in (images / name, images / "test" / name):
        if file.is_file():
            return file
    raise DataError(f"{images / name} is missing")


def _prediction(answer: Mapping[str, Any]) -> Prediction:
    box = answer["box"]
    return Prediction(
        text=answer["text"],
        box=None if box is None else (box[0], box[1], box[2], box[3]),
        score=answer["score"],
    )


def _store(folder: Path) -> StoreLocation:
    database = (folder / "runs" / "mlflow.db").resolve()
    return resolve_store(TrackingConfig(uri=f"sqlite:///{database}"), folder / "runs")


def _size(artifact: Path) -> int:
    """Bytes of what a prediction needs: the tensors and their record, not the pictures."""
    parts = (*artifact.glob("*.safetensors"), *artifact.glob("*.json"))
    return sum(file.stat().st_size for file in parts)


def _read(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); a new demo needs a new folder"
        ) from error
    return record
