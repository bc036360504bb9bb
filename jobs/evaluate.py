"""`prefixworks evaluate`: score a run, a prompt artifact or the base alone on a prepared dataset.

prefixworks evaluate --prompt=runs/grounding --dataset=data/prepared/downstream_test
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep.manifest import Manifest, read_manifest
from pipeline.config_reader import parse
from pipeline.errors import ConfigError
from pipeline.evaluation.config import EvaluationConfig
from pipeline.prompt_folders import owning_run, prompt_folder
from pipeline.tracking.config import DEFAULT_OUTPUT_DIR

REPORT_FILE = "report.json"
PICTURE_FILE = "predictions.png"
_EPILOG = """examples:
  prefixworks evaluate --dataset=data/prepared/test
  prefixworks evaluate --prompt=runs/grounding --dataset=data/prepared/test --tasks=[grounding]
"""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EvaluationConfig):
    """What is scored, on what, and where the report goes."""

    prompt: str | None = None
    """Folder of a run (its best checkpoint), of one of its prompts or of a prompt artifact; None
    scores the base alone. A run of several prompts answers each task with its own."""
    base: str | None = None
    """Name or folder of the base; None takes the prompt's own, or the packaged one."""
    image_size: int | None = None
    """Side in pixels that images are resized to; None takes what the prompt was trained with."""
    output: str | None = None
    """Folder of the report; None takes `evaluation` in the run's folder, or beside the runs."""
    pictures: int = 12
    """Predictions on the picture sheet; 0 draws none."""
    record: bool = True
    """Add the scores of a tracked run to its MLflow run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pictures < 0:
            raise ValueError(f"pictures must be 0 or more, not {self.pictures}")
        if self.image_size is not None and self.image_size < 16:
            raise ValueError(f"image_size must be at least 16, not {self.image_size}")


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    config, dry_run = parse(
        EvaluateConfig,
        argv,
        prog="prefixworks evaluate",
        description="Score a run, a prompt or the base alone on a prepared dataset.",
        epilog=_EPILOG,
    )
    if dry_run:
        print(_plan(config))
        return 0
    run(config)
    return 0


def run(config: EvaluateConfig, *, progress: bool = True) -> dict[str, float]:
    """Evaluates, writes report and pictures, prints the table, and returns the metrics."""
    # Here, because torch takes seconds to import and a bad configuration must not wait for it.
    from pipeline.evaluation.evaluator import evaluate
    from pipeline.evaluation.report import write_report
    from pipeline.evaluation.subject import load_subject

    subject = load_subject(config.prompt, config.base)
    dataset = _dataset(config.dataset or subject.dataset)
    manifest = read_manifest(dataset)
    if config.tasks is None and subject.tasks is not None:
        config = replace(config, tasks=[task for task in subject.tasks if task in manifest.tasks])
    image_size = config.image_size or subject.image_size
    report = evaluate(
        subject.model,
        subject.tokenizer,
        dataset,
        config,
        image_size,
        max_source_length=subject.max_source_length,
        answers=subject.answers,
        progress=progress,
    )
    folder = Path(config.output or _default_output(config, subject.name))
    context = _context(config, manifest, subject.name, subject.base_fingerprint, image_size)
    write_report(folder / REPORT_FILE, report, context)
    pictures = _draw(report.predictions, dataset, folder, config.pictures)
    if subject.run_dir is not None and subject.tasks is not None:
        # Each prompt is registered by itself, with the scores and pictures of its own task.
        for task in report.samples_per_task:
            own, part = prompt_folder(subject.run_dir, task) / "evaluation", report.of_task(task)
            write_report(own / REPORT_FILE, part, context)
            _draw(part.predictions, dataset, own, config.pictures)
    Console().print(report.table(f"{subject.name} on {manifest.name}"))
    print(f"{report.samples} samples in {report.seconds:.1f} s; {folder / REPORT_FILE}")
    for picture in pictures:
        print(f"predictions: {picture}")
    if subject.run_dir is not None and config.record:
        from pipeline.tracking.mlflow import record_evaluation

        record_evaluation(
            owning_run(subject.run_dir),
            report.metrics,
            step=subject.step,
            dataset=dataset,
            pictures=pictures,
        )
    return report.metrics


def _draw(rows: Sequence[Any], dataset: str, folder: Path, count: int) -> list[Path]:
    from pipeline.evaluation.pictures import picture_sheet, spread
    from pipeline.training.data import ShardReader

    chosen = spread(rows, count)
    if not chosen:
        return []
    with ShardReader(dataset) as reader:
        images = [reader.read(row.position)[1] for row in chosen]
    path = folder / PICTURE_FILE
    picture_sheet(chosen, images).save(path, format="PNG", optimize=True)
    return [path]


def _dataset(location: str | None) -> str:
    if location is None:
        raise ConfigError("dataset = None: must be the folder of a prepared dataset")
    return location


def _default_output(config: EvaluateConfig, name: str) -> Path:
    if config.prompt is not None and (Path(config.prompt) / "config.yaml").is_file():
        return Path(config.prompt) / "evaluation"
    return Path(DEFAULT_OUTPUT_DIR) / "evaluation" / name


def _context(
    config: EvaluateConfig, manifest: Manifest, subject: str, base_fingerprint: str, image_size: int
) -> dict[str, Any]:
    return {
        "subject": subject,
        "base_fingerprint": base_fingerprint,
        "image_size": image_size,
        "dataset": {"name": manifest.name, "digest": manifest.digest},
        "settings": asdict(config),
    }


def _plan(config: EvaluateConfig) -> str:
    """What would be done, from what can be read without torch."""
    subject = config.prompt or f"the base {config.base or 'ofa-micro'} alone"
    if config.dataset is None:
        if config.prompt is None:
            _dataset(None)
        return f"would score {subject} on the dataset that its own recipe names"
    manifest = read_manifest(config.dataset)
    tasks = config.tasks or sorted(manifest.tasks)
    counts = {task: manifest.tasks.get(task, 0) for task in tasks}
    if config.max_samples is not None:
        counts = {task: min(count, config.max_samples) for task, count in counts.items()}
    listed = ", ".join(f"{count} {task}" for task, count in counts.items())
    return f"would score {subject} on {manifest.name}: {listed}"


if __name__ == "__main__":
    from jobs.cli import run_stage

    sys.exit(run_stage(main, sys.argv[1:]))
