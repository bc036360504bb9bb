"""From a run folder to a prompt artifact, and from either to a registered version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from data_prep.manifest import read_manifest
from model.checkpoint import fingerprint, load_base, resolve_base
from model.tokenizer import OFATokenizer
from model.tuning import build_tuned_model
from pipeline.config import RunConfig
from pipeline.config_reader import load
from pipeline.config_tree import plain
from pipeline.errors import RegistryError
from pipeline.prompt_folders import owning_run, prompt_folder
from pipeline.registry.artifact import RECORD_FILE, read_record, save_prompt
from pipeline.registry.describe import describe_prompt
from pipeline.registry.record import DataUse
from pipeline.registry.reference import RegisteredPrompt
from pipeline.registry.scores import (
    BEST_WEIGHTS,
    EVALUATION_REPORT,
    RunScores,
    is_newer,
    run_scores,
)
from pipeline.registry.store import PromptRegistry
from pipeline.tasks.vqa import VQA
from pipeline.tracking.config import (
    DEFAULT_OUTPUT_DIR,
    StoreLocation,
    TrackingConfig,
    resolve_store,
)
from pipeline.tracking.identity import read_identity
from pipeline.training.closed_answers import answers_of_run

CONFIG_FILE = "config.yaml"
ARTIFACT_FOLDER = "prompt"
"""Folder of a run that its prompt artifact goes to."""


def export_run(
    run_dir: str | Path,
    folder: str | Path | None = None,
    *,
    scores: RunScores | None = None,
    licence: str = "Apache-2.0",
) -> Path:
    """Writes the prompt artifact of a run's best checkpoint.

    Args:
        run_dir: Folder of the run.
        folder: Place of the artifact; `prompt` in the run folder by default.
        scores: Scores, their data and pictures; by default those of the run's evaluation, else
            of its best validation.
        licence: SPDX name of the prompt's licence.

    Returns:
        The artifact's folder.

    Raises:
        RegistryError: the run has no best checkpoint, its checkpoint does not fit its base, or it
            has several prompts.
        ConfigError: the run's configuration cannot be read.
    """
    run = Path(run_dir)
    config = load(RunConfig, [run / CONFIG_FILE])
    if config.prompt_names():
        folders = ", ".join(str(prompt_folder(run, name)) for name in config.prompt_names())
        raise RegistryError(f"{run} has several prompts; name the folder of one of them: {folders}")
    measured = run_scores(run) if scores is None else scores
    base = load_base(config.base.path)
    # The base's own fingerprint, before a method that writes into it could change it.
    base_fingerprint = fingerprint(base)
    model = build_tuned_model(base, config.tuning)
    model.load_trainable_state(_trainable(run / BEST_WEIGHTS))
    tasks = _tasks(config)
    meta = describe_prompt(
        model,
        name=config.name,
        tasks=tasks,
        base_fingerprint=base_fingerprint,
        tokenizer_digest=OFATokenizer.from_file(
            resolve_base(config.base.path) / "tokenizer.json"
        ).digest,
        image_size=config.data.image_size or base.config.image_size,
        answers=answers_of_run(run) if VQA.name in tasks else (),
        data=_data(config) + measured.data,
        config=plain(config),
        metrics=measured.metrics,
        licence=licence,
    )
    target = run / ARTIFACT_FOLDER if folder is None else Path(folder)
    save_prompt(target, model.eval(), meta, measured.pictures)
    return target


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is to be registered, and where."""

    artifact: Path
    """The artifact's folder."""
    run: Path | None
    """The run whose best checkpoint the artifact is made of first; None where it is up to date."""
    location: StoreLocation
    run_id: str | None
    """MLflow run of the training, where this store recorded it."""


def locate_source(source: str | Path, uri: str | None = None) -> Source:
    """Says what registering a folder means; nothing is written.

    Args:
        source: Folder of a run or of an artifact.
        uri: MLflow store; for a run the one that recorded it, by default.

    Raises:
        RegistryError: the folder is neither.
    """
    folder = Path(source)
    if (folder / RECORD_FILE).is_file():
        location = resolve_store(TrackingConfig(uri=uri), DEFAULT_OUTPUT_DIR)
        return Source(artifact=folder, run=None, location=location, run_id=None)
    if not (folder / CONFIG_FILE).is_file():
        raise RegistryError(f"{folder} is neither a run folder nor a prompt artifact")
    artifact = folder / ARTIFACT_FOLDER
    run = owning_run(folder)
    identity = read_identity(run)
    if identity is None or uri is not None:
        location = resolve_store(TrackingConfig(uri=uri), run.resolve().parent)
    else:
        location = identity.location
    return Source(
        artifact=artifact,
        run=None if _is_current(artifact, folder) else folder,
        location=location,
        # The run is only known to the store that recorded it.
        run_id=identity.run_id if identity and identity.location.uri == location.uri else None,
    )


def register_source(
    source: str | Path,
    *,
    name: str | None = None,
    aliases: Sequence[str] = (),
    uri: str | None = None,
) -> RegisteredPrompt:
    """Registers a run's best prompt, or a prompt artifact.

    Repeating it is safe: the very same prompt and record is no second version, so a command that
    was killed before it came to the aliases is simply given again.

    Args:
        source: Folder of a run or of an artifact.
        name: Registered name; the prompt's own by default.
        aliases: Aliases that move to the new version.
        uri: MLflow store; for a run the one that recorded it, by default.

    Raises:
        RegistryError: the folder is neither, or the store refuses it.
    """
    found = locate_source(source, uri)
    if found.run is not None:
        export_run(found.run)
    registry = PromptRegistry(found.location, create=True)
    record = read_record(found.artifact)
    known = registry.same(name or record.meta.name, record.digest, record.own_digest)
    if known is None:
        return registry.register(found.artifact, name, run_id=found.run_id, aliases=aliases)
    for alias in aliases:
        registry.set_alias(known.title, alias)
    return registry.get(known.title)


def _is_current(artifact: Path, run: Path) -> bool:
    """Whether an artifact is newer than what it is made from: training or evaluation may go on."""
    sources = (BEST_WEIGHTS, EVALUATION_REPORT)
    return all(is_newer(artifact / RECORD_FILE, run / source) for source in sources)


def _trainable(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise RegistryError(f"{path} is missing: the run has no best checkpoint yet")
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise RegistryError(f"{path} is damaged: {error}") from error


def _tasks(config: RunConfig) -> list[str]:
    if config.data.tasks:
        return list(config.data.tasks)
    found: dict[str, int] = {}
    for folder in config.data.train:
        found |= read_manifest(folder).tasks
    return sorted(found)


def _data(config: RunConfig) -> tuple[DataUse, ...]:
    roles = {"train": config.data.train, "validation": config.data.validation}
    uses = []
    for role, folders in roles.items():
        for folder in folders:
            manifest = read_manifest(folder)
            uses.append(
                DataUse(
                    role=role,
                    name=manifest.name,
                    digest=manifest.digest,
                    samples=manifest.samples,
                )
            )
    return tuple(uses)
