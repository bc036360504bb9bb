"""The prompt artifact: a folder of plain tensors, a JSON record and a card.

    prompt.safetensors   what was tuned: keys and values, adapters or biases
    prompt.json          the record (pipeline.registry.record)
    README.md            the card, generated from the record
    pictures/*.png       pictures that the card shows, where there are any

Saving the same prompt again gives the same bytes, and the folder appears whole or not at all. The
format is described in docs/reference/prompt-artifact.md.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from model.checkpoint import fingerprint
from model.ofa.model import OFA
from model.tuning import TunedModel, build_tuned_model
from pipeline.errors import CheckpointError, RegistryError
from pipeline.registry.card import render_card
from pipeline.registry.record import PromptMeta, PromptRecord, TensorEntry
from pipeline.registry.tuning_values import from_values

TENSORS_FILE = "prompt.safetensors"
RECORD_FILE = "prompt.json"
CARD_FILE = "README.md"
PICTURES_FOLDER = "pictures"


@dataclass(frozen=True)
class PromptArtifact:
    """A prompt as read from disk and checked against its record."""

    record: PromptRecord
    tensors: dict[str, Tensor]


def save_prompt(
    folder: str | Path, model: TunedModel, meta: PromptMeta, pictures: Sequence[Path] = ()
) -> PromptRecord:
    """Writes a tuned model's prompt as an artifact folder.

    Args:
        folder: Place of the artifact. An artifact that is there already is replaced; anything else
            that is there is left alone.
        model: The tuned model; its export_state is written.
        meta: Where the prompt comes from.
        pictures: PNG files that the card shows.

    Returns:
        The record that was written.

    Raises:
        RegistryError: the method exports no tensors, a number is not finite, the folder holds
            something else, or it cannot be written; what was there before is still there then.
    """
    target = Path(folder).resolve()
    if target.exists() and not (target / RECORD_FILE).is_file() and any(target.iterdir()):
        raise RegistryError(f"{target} is not empty and holds no prompt: choose another folder")
    # Copies, because safetensors refuses views of one memory.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.export_state().items()
    }
    record = PromptRecord(meta=meta, tensors=_entries(tensors), digest=_digest(tensors))
    names = [picture.name for picture in pictures]
    files = {
        TENSORS_FILE: safetensors.torch.save(tensors),
        RECORD_FILE: record.to_json().encode(),
        CARD_FILE: render_card(record, {n: f"{PICTURES_FOLDER}/{n}" for n in names}).encode(),
    }
    for name, picture in zip(names, pictures, strict=True):
        files[f"{PICTURES_FOLDER}/{name}"] = picture.read_bytes()
    _write_folder(target, files)
    return record


def read_record(folder: str | Path) -> PromptRecord:
    """Reads an artifact's record without its tensors.

    Raises:
        RegistryError: there is no artifact, or its record cannot be read by this version.
    """
    path = Path(folder) / RECORD_FILE
    if not path.is_file():
        raise RegistryError(f"{folder} is no prompt artifact: {RECORD_FILE} is missing")
    try:
        return PromptRecord.from_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise RegistryError(f"{path} cannot be read: {error}") from error


def read_prompt(folder: str | Path) -> PromptArtifact:
    """Reads an artifact and checks each tensor against its record.

    Raises:
        RegistryError: a file is missing or unreadable, the format is newer, or a tensor is missing,
            unknown, of another shape, or of other content than recorded.
    """
    record = read_record(folder)
    path = Path(folder) / TENSORS_FILE
    if not path.is_file():
        raise RegistryError(f"{folder} is no whole prompt artifact: {TENSORS_FILE} is missing")
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise RegistryError(f"{path} is damaged: {error}") from error
    _check_tensors(record, tensors, path)
    return PromptArtifact(record=record, tensors=tensors)


def attach_prompt(
    base: OFA, folder: str | Path, *, base_fingerprint: str | None = None
) -> TunedModel:
    """Puts a saved prompt onto its base.

    Args:
        base: The base. A method that tunes the base itself, such as bitfit, writes into it.
        folder: The artifact.
        base_fingerprint: The base's fingerprint where the caller has it already; it is computed
            otherwise.

    Returns:
        The tuned model in eval mode.

    Raises:
        RegistryError: the artifact is damaged, or it was made for another base.
    """
    artifact = read_prompt(folder)
    check_base(artifact.record, base.config.name, base_fingerprint or fingerprint(base))
    meta = artifact.record.meta
    tuning = from_values(meta.tuning, meta.name)
    try:
        tuned = build_tuned_model(base, tuning)
        tuned.load_exported(artifact.tensors)
        if not tuned.freezes_base:
            # What the artifact wrote into the base is not trained here.
            base.freeze()
    except (CheckpointError, ValueError) as error:
        raise RegistryError(f"prompt {meta.name!r} does not fit its own record: {error}") from error
    return tuned.eval()


def check_base(record: PromptRecord, name: str, found: str) -> None:
    """Refuses a base that the prompt was not made for.

    Args:
        record: The prompt's record.
        name: Name of the base at hand.
        found: Fingerprint of the base at hand.

    Raises:
        RegistryError: the fingerprints differ; the message names both.
    """
    made_for = record.meta.base
    if found != made_for.fingerprint:
        raise RegistryError(
            f"prompt {record.meta.name!r} was made for base {made_for.name}"
            f" ({made_for.fingerprint}), not for {name} ({found})"
        )


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _entries(tensors: Mapping[str, Tensor]) -> dict[str, TensorEntry]:
    if not tensors:
        raise RegistryError("the model has no prompt to save: its tuning method exports no tensors")
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise RegistryError(f"tensor {name} is not finite; the prompt was not saved")
    return {
        name: TensorEntry(
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tuple(tensor.shape),
            sha256=hashlib.sha256(_bytes(tensor)).hexdigest(),
        )
        for name, tensor in sorted(tensors.items())
    }


def _digest(tensors: Mapping[str, Tensor]) -> str:
    return _digest_of(_entries(tensors))


def _digest_of(entries: Mapping[str, TensorEntry]) -> str:
    total = hashlib.sha256()
    for name, entry in sorted(entries.items()):
        total.update(f"{name} {entry.dtype} {list(entry.shape)} {entry.sha256}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _check_tensors(record: PromptRecord, tensors: Mapping[str, Tensor], path: Path) -> None:
    missing = sorted(set(record.tensors) - set(tensors))
    if missing:
        raise RegistryError(f"{path} lacks the tensor {missing[0]}")
    unknown = sorted(set(tensors) - set(record.tensors))
    if unknown:
        raise RegistryError(f"{path} holds the tensor {unknown[0]}, which its record does not name")
    found = _entries(tensors)
    for name, expected in sorted(record.tensors.items()):
        if found[name] != expected:
            raise RegistryError(
                f"{path} was changed: tensor {name} has sha256 {found[name].sha256},"
                f" its record says {expected.sha256}"
            )
    if _digest_of(found) != record.digest:
        raise RegistryError(f"{path} does not have its record's digest {record.digest}")


def _write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise RegistryError(f"{target} cannot be written: {error.strerror}") from error
    try:
        fresh = scratch / "new"
        for name, content in files.items():
            path = fresh / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        # A folder cannot be renamed onto a full one, so the old one steps aside first.
        if target.exists():
            target.rename(scratch / "old")
        fresh.rename(target)
    except OSError as error:
        raise RegistryError(f"{target} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(scratch)
