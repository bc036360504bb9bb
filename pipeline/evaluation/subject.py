"""What is evaluated: a base alone, the best checkpoint of a run, or a prompt artifact."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from model.checkpoint import fingerprint, load_base, load_config, load_weights, resolve_base
from model.ofa.model import OFA
from model.tokenizer import OFATokenizer
from model.tuning import TunedModel, build_tuned_model
from pipeline.config import RunConfig
from pipeline.config_reader import load
from pipeline.errors import CheckpointError, ConfigError
from pipeline.evaluation.answering import MAX_SOURCE_LENGTH
from pipeline.prompt_folders import prompt_folder
from pipeline.registry.artifact import RECORD_FILE, attach_prompt, read_record
from pipeline.registry.bases import base_place
from pipeline.training.closed_answers import answers_of_run

CONFIG_FILE = "config.yaml"
BEST_FOLDER = "best"
TRAINABLE_FILE = "trainable.safetensors"
STATE_FILE = "state.json"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model ready to be scored, and where it comes from."""

    model: TunedModel | OFA
    tokenizer: OFATokenizer
    name: str
    """Name of the run, prompt or base."""
    base: str
    """Name of the base."""
    base_fingerprint: str
    image_size: int
    """Side in pixels of the square that images are resized to."""
    max_source_length: int
    answers: tuple[str, ...] = ()
    """The only answers to questions; none where they are open."""
    dataset: str | None = None
    """The dataset that the run's own recipe evaluates on."""
    run_dir: Path | None = None
    step: int = 0
    """Training step of the checkpoint; of several prompts, that of the last."""
    tasks: tuple[str, ...] | None = None
    """The only tasks that it has prompts for; None where it answers any."""


def load_subject(prompt: str | Path | None, base: str | None = None) -> Subject:
    """Loads what is to be evaluated.

    Args:
        prompt: Folder of a run (its best checkpoint) or of a prompt artifact; None for the base
            alone.
        base: Name or folder of the base; None takes the run's or the artifact's own, or the
            packaged one.

    Raises:
        ConfigError: The folder is neither a run nor an artifact.
        CheckpointError: A checkpoint is missing, damaged, or does not fit its base.
        RegistryError: The artifact is damaged, or was made for another base.
    """
    if prompt is None:
        return _base_alone(base or RunConfig(name="base").base.path)
    folder = Path(prompt)
    if (folder / RECORD_FILE).is_file():
        return _artifact(folder, base)
    if (folder / CONFIG_FILE).is_file():
        return _run(folder, base)
    raise ConfigError(
        f"prompt = {str(prompt)!r}: neither a run folder ({CONFIG_FILE}) nor a prompt artifact"
        f" ({RECORD_FILE})"
    )


def _base_alone(place: str) -> Subject:
    model = load_base(place).freeze()
    return Subject(
        model=model,
        tokenizer=_tokenizer(place),
        name=model.config.name,
        base=model.config.name,
        base_fingerprint=fingerprint(model),
        image_size=model.config.image_size,
        max_source_length=MAX_SOURCE_LENGTH,
    )


def _artifact(folder: Path, base: str | None) -> Subject:
    record = read_record(folder)
    place = base or base_place(record)
    model = load_base(place)
    base_fingerprint = fingerprint(model)
    data = record.meta.config.get("data", {})
    return Subject(
        model=attach_prompt(model, folder, base_fingerprint=base_fingerprint),
        tokenizer=_tokenizer(place),
        name=record.meta.name,
        base=model.config.name,
        base_fingerprint=base_fingerprint,
        image_size=record.meta.image_size,
        max_source_length=int(data.get("max_source_length", MAX_SOURCE_LENGTH)),
        answers=record.meta.answers,
    )


def _run(folder: Path, base: str | None) -> Subject:
    config = load(RunConfig, [folder / CONFIG_FILE])
    place = base or config.base.path
    names = config.prompt_names()
    # A base that was learnt from nothing is all in the run's own checkpoint.
    model = OFA(load_config(place)) if config.base.random_init else load_base(place)
    base_fingerprint = fingerprint(model)
    tuned = build_tuned_model(model, config.tuning, names)
    folders = [prompt_folder(folder, name) for name in names] or [folder]
    parts = [tuned.alone(name) for name in names] or [tuned]
    for part, own in zip(parts, folders, strict=True):
        part.load_trainable_state(_best_weights(own))
    if tuned.makes_base:
        base_fingerprint = fingerprint(model)
    return Subject(
        model=tuned,
        tokenizer=_tokenizer(place),
        name=config.name,
        base=model.config.name,
        base_fingerprint=base_fingerprint,
        image_size=config.data.image_size or model.config.image_size,
        max_source_length=config.data.max_source_length,
        answers=answers_of_run(folder),
        dataset=config.evaluation.dataset,
        run_dir=folder,
        step=max(_step(own / BEST_FOLDER / STATE_FILE) for own in folders),
        tasks=names or None,
    )


def _best_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / BEST_FOLDER / TRAINABLE_FILE
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: the run has no best checkpoint yet")
    return load_weights(path)


def _step(path: Path) -> int:
    if not path.is_file():
        return 0
    return int(json.loads(path.read_text(encoding="utf-8")).get("step", 0))


def _tokenizer(place: str) -> OFATokenizer:
    return OFATokenizer.from_file(resolve_base(place) / "tokenizer.json")
