"""Evaluation: every chosen sample answered by beam search, task by task, then scored."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_prep.schema import Sample
from model.ofa.model import OFA
from model.tokenizer import OFATokenizer
from model.tuning import TunedModel
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.answering import MAX_SOURCE_LENGTH, Answerer
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.report import EvaluationReport, PredictionRow
from pipeline.tasks.answers import read_answers
from pipeline.tasks.registry import get_task
from pipeline.training.data import ShardReader


def evaluate(
    model: TunedModel | OFA,
    tokenizer: OFATokenizer,
    dataset_folder: str | Path,
    config: EvaluationConfig,
    image_size: int,
    *,
    max_source_length: int = MAX_SOURCE_LENGTH,
    answers: tuple[str, ...] = (),
    progress: bool = False,
) -> EvaluationReport:
    """Answers and scores a prepared dataset.

    Args:
        model: A tuned model, or a base alone (zero-shot). Its mode is restored afterwards.
        tokenizer: The base's.
        dataset_folder: The prepared dataset.
        config: Tasks, search and how many samples; its own dataset is not looked at.
        image_size: Side in pixels of the square that images are resized to.
        max_source_length: Tokens of an instruction that are kept, bos and eos included.
        answers: The model's own closed answers to questions; none where they are open.
        progress: Show a bar on stderr.

    Raises:
        DataError: The dataset is unreadable, or has no sample of a wanted task.
        ConfigError: A wanted task is unknown, or closed answers are wanted and there are none.
    """
    started = time.perf_counter()
    rows: list[PredictionRow] = []
    with ShardReader(dataset_folder) as reader, _answering(model), _bar(progress) as bar:
        places = choose_samples(reader.tasks, config, str(dataset_folder))
        answerer = Answerer(
            model,
            tokenizer,
            image_size=image_size,
            beam_size=config.beam_size,
            max_source_length=max_source_length,
            answers=only_answers(config, answers),
            score_all=config.vqa == "candidates",
        )
        for task, positions in places.items():
            line = bar.add_task(task, total=len(positions), rate="")
            begun = time.perf_counter()
            for start in range(0, len(positions), config.batch_size):
                batch = positions[start : start + config.batch_size]
                rows += _answer(answerer, task, batch, [reader.read(p) for p in batch])
                rate = (start + len(batch)) / (time.perf_counter() - begun)
                bar.update(line, advance=len(batch), rate=f"{rate:.1f} samples/s")
    return EvaluationReport(
        metrics=score_rows(rows),
        samples=len(rows),
        predictions=rows,
        samples_per_task={task: len(positions) for task, positions in places.items()},
        seconds=time.perf_counter() - started,
    )


def only_answers(config: EvaluationConfig, own: tuple[str, ...]) -> tuple[str, ...]:
    """The answers that questions may get in an evaluation; none leaves them open.

    Args:
        config: The evaluation.
        own: Closed answers of what is evaluated.

    Raises:
        ConfigError: closed answers are wanted and there are none, or their file cannot be read.
    """
    if config.vqa == "open":
        return ()
    answers = own if config.vqa_answers is None else read_answers(config.vqa_answers)
    if config.vqa is not None and not answers:
        raise ConfigError(
            f"vqa = {config.vqa}: there is no list of answers; train with data.vqa.answers ="
            " closed, or name a file in vqa_answers"
        )
    return answers


def choose_samples(
    tasks: Sequence[str], config: EvaluationConfig, dataset: str
) -> dict[str, list[int]]:
    """Chooses which samples are scored.

    Args:
        tasks: Task of each sample of the dataset.
        config: Wanted tasks and samples of each.
        dataset: Name of the dataset, for errors.

    Returns:
        positions in the dataset by task; max_samples of them lie evenly over the dataset.

    Raises:
        DataError: a wanted task has no sample, or there are no samples at all.
        ConfigError: a wanted task is unknown.
    """
    wanted = config.tasks or sorted(set(tasks))
    chosen: dict[str, list[int]] = {}
    for name in wanted:
        get_task(name)
        positions = [position for position, task in enumerate(tasks) if task == name]
        if not positions:
            there = ", ".join(sorted(set(tasks))) or "none"
            raise DataError(f"{dataset} has no samples of task {name!r}; its tasks: {there}")
        count = min(len(positions), config.max_samples or len(positions))
        chosen[name] = [positions[i * len(positions) // count] for i in range(count)]
    if not chosen:
        raise DataError(f"{dataset} has no samples")
    return chosen


def score_rows(rows: Sequence[PredictionRow]) -> dict[str, float]:
    """Metrics of all tasks among some rows, by `<task>/<metric>`."""
    metrics: dict[str, float] = {}
    for name in dict.fromkeys(row.sample.task for row in rows):
        group = [row for row in rows if row.sample.task == name]
        metrics |= get_task(name).score(
            [row.prediction for row in group], [row.sample for row in group]
        )
    return metrics


def _answer(
    answerer: Answerer,
    task: str,
    positions: Sequence[int],
    records: Sequence[tuple[Sample, Image.Image]],
) -> list[PredictionRow]:
    samples = [sample for sample, _ in records]
    predictions = answerer.answer(task, samples, [image for _, image in records])
    return [
        PredictionRow(position=position, sample=sample, prediction=prediction)
        for position, sample, prediction in zip(positions, samples, predictions, strict=True)
    ]


@contextmanager
def _answering(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode for a while."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


def _bar(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
