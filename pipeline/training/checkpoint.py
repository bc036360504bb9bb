"""One checkpoint of a run: what continues it, and the best that it had.

A checkpoint is a folder of two files: the tensors as safetensors, and a record that names their
digest and carries its own. It depends on no ZeRO stage and no number of ranks, nothing in it can
execute code, and what was written is read again before it counts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint import TOKENIZER_FILE, resolve_base, save_base
from model.tuning import TunedModel
from pipeline.config_tree import build
from pipeline.errors import CheckpointError, ConfigError, TrainingError

FORMAT = "prefixworks.checkpoint/2"
CHECKPOINTS = "checkpoints"
LATEST = "latest"
STATE = "state.json"
TENSORS = "tensors.safetensors"
BEST = "best"
BEST_BASE = "base"
TRAINABLE = "trainable.safetensors"
PARTIAL = ".partial-"
"""Before the name of what is not whole yet, or not any more."""
_OLD_FORMAT = "prefixworks.checkpoint/1"


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best validation so far."""

    step: int
    value: float
    """What was compared."""
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How one of several prompts stands."""

    best: Best | None
    mark: float | None
    """What patience compares with, as in the run's state."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands; the data cursor and all random numbers follow from seed and step."""

    step: int
    """Optimizer steps done."""
    total_steps: int
    base_fingerprint: str
    """Of the base as the run began."""
    datasets: dict[str, str]
    """Digest of the manifest of each training data set."""
    ranks: int
    zero_stage: int
    global_batch: int
    """Samples of a step, over all ranks."""
    seconds: float
    """Time spent so far, over all parts of the run."""
    best: Best | None = None
    mark: float | None = None
    """What patience compares with: the last value that was better by min_delta."""
    stale: int = 0
    """Validations since then."""
    prompts: dict[str, Standing] = field(default_factory=dict)
    """Each prompt's own, where the run trains several."""
    config: dict[str, Any] = field(default_factory=dict)
    """The run's resolved configuration, as plain values."""


def write_checkpoint(folder: Path, state: RunState, tensors: Mapping[str, Tensor]) -> None:
    """Writes a checkpoint into an empty folder and reads all of it again.

    Raises:
        OSError, SafetensorError: a file cannot be written.
        CheckpointError: what was written is not what was to be written.
    """
    digest = write_tensors(folder / TENSORS, tensors, state.step)
    record = {"format": FORMAT, **asdict(state), "tensors": digest}
    write_json_whole(folder / STATE, {**record, "digest": _digest(record)})
    # Compared as text, in which also a loss that is no number equals itself.
    if _canonical(asdict(read_state(folder))) != _canonical(asdict(state)):
        raise CheckpointError(f"{folder / STATE} does not hold what was written into it")


def read_state(place: Path) -> RunState:
    """Reads the state of a checkpoint.

    Raises:
        CheckpointError: it is missing, damaged, or of another format.
    """
    return _read_record(place)[0]


def read_checkpoint(place: Path) -> tuple[RunState, dict[str, Tensor]]:
    """Reads a checkpoint, and compares every byte of it with its digests.

    Returns:
        The state, and the tensors as views of the mapped file.

    Raises:
        CheckpointError: it is missing, damaged, or of another format.
    """
    state, digest = _read_record(place)
    path = place / TENSORS
    try:
        if _sha256(path) != digest:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the recorded one")
        return state, load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is missing or damaged: {error}") from error


def _read_record(place: Path) -> tuple[RunState, str]:
    path = place / STATE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("not a record")
        if record.get("format") != FORMAT:
            raise CheckpointError(_other_format(path, record.get("format")))
        if record.pop("digest", None) != _digest(record):
            raise ValueError("its digest is not that of its content")
        del record["format"]
        digest, config = record.pop("tensors"), record.pop("config")
        state = build(RunState, {**record, "config": {}})
    except (OSError, ValueError, KeyError, RecursionError, ConfigError) as error:
        raise CheckpointError(f"{path} is missing or damaged: {error}") from error
    if not isinstance(digest, str) or not isinstance(config, dict):
        raise CheckpointError(f"{path} is damaged: tensors or config are of another type")
    return replace(state, config=config), digest


def _other_format(path: Path, found: object) -> str:
    if found == _OLD_FORMAT:
        return (
            f"{path} has format {found}, DeepSpeed's own files, which hold for one ZeRO stage and"
            f" number of ranks only; this version reads {FORMAT}: finish the run with the version"
            " that began it, or begin it again under another name"
        )
    return f"{path} has format {found!r}; this version reads {FORMAT}"


def _canonical(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"))


def _digest(record: Mapping[str, Any]) -> str:
    return f"sha256:{hashlib.sha256(_canonical(record).encode()).hexdigest()}"


def write_best(run_dir: Path, model: TunedModel, best: Best, base_path: str) -> None:
    """Writes what is trained as the run's best; a fine-tuned base also as a base folder.

    Args:
        run_dir: Folder of the run.
        model: The model, with all its parameters in one place.
        best: What was measured.
        base_path: The base that the run started from; its tokenizer goes with a fine-tuned base.

    Raises:
        TrainingError: a file cannot be written.
        CheckpointError: what was written is not what was to be written.
    """
    folder = run_dir / BEST
    with writing(folder):
        folder.mkdir(exist_ok=True)
        digest = write_tensors(folder / TRAINABLE, model.trainable_state(), best.step)
        if model.makes_base:
            save_base(model.base, resolve_base(base_path) / TOKENIZER_FILE, folder / BEST_BASE)
        write_json_whole(folder / STATE, {**asdict(best), "sha256": digest})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], step: int) -> str:
    """Writes tensors, reads them again, and only then gives the file its name.

    Returns:
        SHA-256 of the file, in hex.

    Raises:
        OSError, SafetensorError: the file cannot be written.
        CheckpointError: it does not hold the same bytes.
    """
    partial = path.with_name(f"{PARTIAL}{path.name}")
    save_file({n: t.contiguous() for n, t in tensors.items()}, partial, {"step": str(step)})
    sync(partial)
    with safe_open(partial, framework="pt") as written:
        if set(written.keys()) != set(tensors) or not all(
            _same_bytes(written.get_tensor(name), tensor) for name, tensor in tensors.items()
        ):
            raise CheckpointError(f"{partial} does not hold what was written into it")
    digest = _sha256(partial)
    partial.replace(path)
    sync(path.parent)
    return digest


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    # As bytes, in which -0.0 is not 0.0 and a value that is no number equals itself.
    raw = [t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other)]
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(*raw)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Says in one line that a disk is full or a folder cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{place} cannot be written: {error}") from error


def write_text_whole(path: Path, text: str) -> None:
    """Writes a file that appears whole or not at all."""
    partial = path.with_name(f"{PARTIAL}{path.name}")
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def write_json_whole(path: Path, record: dict[str, Any]) -> None:
    """Writes a JSON file that appears whole or not at all."""
    write_text_whole(path, json.dumps(record, indent=2) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
