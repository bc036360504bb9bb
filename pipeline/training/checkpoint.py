"""Checkpoints of a run: what continues it, and the best that it had.

A checkpoint is written under another name, read again, and renamed; `latest` points at it last. So
a run that is killed at any moment finds its newest whole checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint import TOKENIZER_FILE, resolve_base, save_base
from model.tuning import TunedModel
from pipeline.errors import CheckpointError, TrainingError
from pipeline.training.backend import Engine
from pipeline.training.world import World

FORMAT = "prefixworks.checkpoint/1"
CHECKPOINTS = "checkpoints"
LATEST = "latest"
STATE = "state.json"
BEST = "best"
BEST_BASE = "base"
TRAINABLE = "trainable.safetensors"
_PARTIAL = ".partial-"


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best validation so far."""

    step: int
    value: float
    """What was compared."""
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands; the data cursor and all random numbers follow from the step."""

    step: int
    """Optimizer steps done."""
    total_steps: int
    base_fingerprint: str
    """Of the base as the run began."""
    datasets: dict[str, str]
    """Digest of the manifest of each training data set."""
    ranks: int
    zero_stage: int
    seconds: float
    """Time spent so far, over all parts of the run."""
    best: Best | None = None
    mark: float | None = None
    """What patience compares with: the last value that was better by min_delta."""
    stale: int = 0
    """Validations since then."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each file of the checkpoint."""

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> RunState:
        """Reads state.json; KeyError, TypeError or ValueError when that is no state."""
        if record.pop("format") != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        best = record.pop("best")
        return cls(best=None if best is None else Best(**best), **record)


class CheckpointFolder:
    """The checkpoints of one run."""

    def __init__(self, run_dir: Path, world: World, keep_last: int) -> None:
        self.folder = run_dir / CHECKPOINTS
        self._world = world
        self._keep_last = keep_last

    def latest(self) -> Path | None:
        """The newest whole checkpoint, or None.

        Raises:
            CheckpointError: `latest` points at nothing.
        """
        pointer = self.folder / LATEST
        if not pointer.is_file():
            return None
        place = self.folder / pointer.read_text(encoding="utf-8").strip()
        if not (place / STATE).is_file():
            raise CheckpointError(f"{pointer} points at {place.name}, which is no whole checkpoint")
        return place

    def save(self, engine: Engine, state: RunState) -> None:
        """Writes a checkpoint; called by every rank at the same step.

        Raises:
            TrainingError: it cannot be written, or another rank is gone.
            CheckpointError: what was written does not hold what is trained.
        """
        name = f"step-{state.step:06d}"
        partial = self.folder / f"{_PARTIAL}{name}"
        if self._world.leads:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(f"{_PARTIAL}*"):
                shutil.rmtree(left)
        self._world.barrier()
        engine.save(self.folder, partial.name)
        self._world.barrier()
        if self._world.leads:
            engine.check_saved(partial)
            with writing(self.folder / name):
                self._publish(partial, self.folder / name, state)
        self._world.barrier()

    def load(self, engine: Engine, place: Path) -> None:
        """Takes the engine back to a checkpoint; called by every rank.

        Raises:
            CheckpointError: the checkpoint is damaged or does not fit.
        """
        for name, digest in read_state(place).files.items():
            if not (place / name).is_file() or _sha256(place / name) != digest:
                raise CheckpointError(f"{place / name} is missing or damaged")
        engine.load(self.folder, place.name)

    def _publish(self, partial: Path, place: Path, state: RunState) -> None:
        files = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
        for name in files:
            _sync(partial / name)
        write_json_whole(partial / STATE, {"format": FORMAT, **asdict(state), "files": files})
        if place.exists():
            shutil.rmtree(place)
        partial.rename(place)
        _sync(self.folder)
        write_text_whole(self.folder / LATEST, place.name + "\n")
        whole = sorted(self.folder.glob("step-*"), key=lambda path: int(path.name[5:]))
        for old in whole[: -self._keep_last]:
            if old != place:
                shutil.rmtree(old)


def read_state(place: Path) -> RunState:
    """Reads the state of a checkpoint.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = place / STATE
    try:
        return RunState.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is missing or damaged: {error}") from error


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
        path = folder / TRAINABLE
        _write_tensors(path, model.trainable_state(), best.step)
        if model.makes_base:
            save_base(model.base, resolve_base(base_path) / TOKENIZER_FILE, folder / BEST_BASE)
        write_json_whole(folder / STATE, {**asdict(best), "sha256": _sha256(path)})


def _write_tensors(path: Path, tensors: dict[str, Tensor], step: int) -> None:
    partial = path.with_name(f"{_PARTIAL}{path.name}")
    save_file({n: t.contiguous() for n, t in tensors.items()}, partial, {"step": str(step)})
    _sync(partial)
    with safe_open(partial, framework="pt") as written:
        if set(written.keys()) != set(tensors) or not all(
            torch.equal(written.get_tensor(name), tensor) for name, tensor in tensors.items()
        ):
            raise CheckpointError(f"{partial} does not hold what was written into it")
    partial.replace(path)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Says in one line that a disk is full or a folder cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{place} cannot be written: {error}") from error


def write_text_whole(path: Path, text: str) -> None:
    """Writes a file that appears whole or not at all."""
    partial = path.with_name(f"{_PARTIAL}{path.name}")
    partial.write_text(text, encoding="utf-8")
    _sync(partial)
    partial.replace(path)
    _sync(path.parent)


def write_json_whole(path: Path, record: dict[str, Any]) -> None:
    """Writes a JSON file that appears whole or not at all."""
    write_text_whole(path, json.dumps(record, indent=2) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
