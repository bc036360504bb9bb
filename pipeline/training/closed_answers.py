"""The list of answers that a run closes its questions to, and its file in the run's folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import RunConfig
from pipeline.errors import CheckpointError, ConfigError, DataError
from pipeline.prompt_folders import owning_run
from pipeline.tasks.answers import ANSWERS_FILE, favourites, most_frequent, read_answers
from pipeline.training.checkpoint import write_json_whole, writing
from pipeline.training.data import ShardReader
from pipeline.training.data_config import DataConfig
from pipeline.training.run_folder import run_folder
from pipeline.training.world import World

_FORMAT = "prefixworks.answers/1"
_VQA = "vqa"


def close_answers(
    config: RunConfig, readers: Sequence[ShardReader], world: World
) -> tuple[str, ...]:
    """The only answers of a run, written into its folder; none where its answers are open.

    Every rank calls it: they count the training questions together. What a run has counted of the
    same data before is not counted again.

    Raises:
        ConfigError: no questions are learnt, or the file of answers is no such.
        DataError: no answer is frequent enough, or the data are damaged.
        TrainingError: the list cannot be written, or another rank is gone.
    """
    settings, path = config.data.vqa, run_folder(config) / ANSWERS_FILE
    if settings.answers == "open":
        return ()
    if not _has_questions(config.data, readers):
        raise ConfigError("data.vqa.answers = closed: no questions (vqa) are learnt in this run")
    made_of: dict[str, Any] = {"file": settings.file}
    if settings.file is None:
        made_of = {
            "datasets": [reader.manifest.digest for reader in readers],
            "most": settings.most,
            "min_questions": settings.min_questions,
        }
    if settings.file is not None:
        answers = read_answers(settings.file)
    else:
        told = world.gather(_counted_before(path, made_of) if world.leads else ())[0]
        answers = told or _counted(config.data, readers, world)
    if world.leads:
        with writing(path):
            record = {"format": _FORMAT, "made_of": made_of, "answers": list(answers)}
            write_json_whole(path, record)
    return answers


def answers_of_run(run_dir: Path) -> tuple[str, ...]:
    """The only answers of a run, or of one of its prompts; none where its answers are open.

    Raises:
        CheckpointError: their file is damaged.
    """
    path = owning_run(run_dir) / ANSWERS_FILE
    return tuple(_read(path)["answers"]) if path.is_file() else ()


def _has_questions(data: DataConfig, readers: Sequence[ShardReader]) -> bool:
    learnt = data.tasks is None or _VQA in data.tasks
    if data.task_weights is not None:
        learnt = learnt and data.task_weights.get(_VQA, 0) > 0
    return learnt and any(reader.manifest.tasks.get(_VQA) for reader in readers)


def _counted(data: DataConfig, readers: Sequence[ShardReader], world: World) -> tuple[str, ...]:
    counts: Counter[str] = Counter()
    for reader in readers:
        blocks = reader.index.blocks({_VQA})
        if blocks:
            # Neighbours lie in one shard, which a store then sends to one rank only.
            rows = np.array_split(np.concatenate(blocks), world.size)[world.rank]
            counts += favourites(reader.record(int(row)) for row in rows)
    total = sum(world.gather(counts), Counter())
    answers = most_frequent(total, data.vqa.most, data.vqa.min_questions)
    if not answers:
        raise DataError(
            f"data.vqa.min_questions = {data.vqa.min_questions}: no answer is the favourite of so"
            f" many of the {total.total()} answered training questions"
        )
    return answers


def _counted_before(path: Path, made_of: dict[str, Any]) -> tuple[str, ...]:
    """The answers that the file holds, if it was made of the same; else none."""
    try:
        record = _read(path) if path.is_file() else {}
    except CheckpointError:
        # It is made of the data, so it is made again.
        return ()
    return tuple(record["answers"]) if record.get("made_of") == made_of else ()


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is no list of answers of the format {_FORMAT}")
    answers = record.get("answers")
    texts = isinstance(answers, list) and all(isinstance(text, str) for text in answers)
    if not texts or not answers:
        raise CheckpointError(f"{path} is damaged: its answers are no list of texts")
    return record
