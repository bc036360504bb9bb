"""The checkpoints of one run: written beside the training, kept, found again.

The state is copied where the ranks meet, and a thread of the leading rank does the rest: write
under another name, read again, rename, point `latest` at it. So a run that is killed at any moment
finds its newest whole checkpoint, and a step waits for a disk only when the checkpoint before is
still being written.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from torch import Tensor

from model.tuning.method import fill
from pipeline.errors import CheckpointError, PrefixworksError
from pipeline.training.checkpoint import (
    CHECKPOINTS,
    LATEST,
    PARTIAL,
    STATE,
    RunState,
    read_checkpoint,
    read_state,
    sync,
    write_checkpoint,
    write_text_whole,
    writing,
)
from pipeline.training.config import TrainingConfig
from pipeline.training.subject import BUFFER
from pipeline.training.world import World

if TYPE_CHECKING:
    from pipeline.training.backend import Engine

log = logging.getLogger(__name__)
_STEP = "step-"


class CheckpointFolder:
    """The checkpoints of one run, to be entered while it trains."""

    def __init__(self, run_dir: Path, world: World, training: TrainingConfig) -> None:
        self.folder = run_dir / CHECKPOINTS
        self._world = world
        self._keep_last = training.keep_last
        self._writer = ThreadPoolExecutor(1, "checkpoint") if training.async_checkpoints else None
        self._pending: Future[None] | None = None
        self._held: int | None = None
        """The step of the newest checkpoint, where this process has written or loaded it: writing
        it again would take it away for a moment."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except PrefixworksError as failure:
            if error is None:
                raise
            # The run breaks for another reason, which must stay the last word.
            if failure is not error:
                log.warning("%s", failure)
        finally:
            if self._writer is not None:
                self._writer.shutdown()

    def save(self, engine: Engine, buffers: Mapping[str, Tensor], state: RunState) -> None:
        """Writes a checkpoint, or begins to; called by every rank at the same step.

        Args:
            engine: Gives the tensors.
            buffers: What training moves beside them, the same on every rank.
            state: Where the run stands.

        Raises:
            TrainingError: this one or the one before cannot be written, or a rank is gone.
            CheckpointError: what was written is not what was to be written.
        """
        if self._held == state.step:
            return
        self.wait()
        tensors = engine.full_state()
        self._held = state.step
        if not self._world.leads:
            return
        tensors |= {name: buffer.to("cpu", copy=True) for name, buffer in buffers.items()}
        if self._writer is None:
            self._write(state, tensors)
        else:
            self._pending = self._writer.submit(self._write, state, tensors)

    def check(self) -> None:
        """Raises what has become of the checkpoint that is being written, without waiting."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits until the checkpoint that is being written counts.

        Raises:
            TrainingError: it cannot be written.
            CheckpointError: what was written is not what was to be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def load(
        self,
        engine: Engine,
        buffers: dict[str, Tensor],
        place: Path,
        tensors: dict[str, Tensor],
    ) -> None:
        """Takes a run back to a checkpoint; called by every rank.

        Args:
            engine: Takes the tensors.
            buffers: Take what `save` was given.
            place: Where they come from, for errors.
            tensors: Those of a checkpoint.

        Raises:
            CheckpointError: they do not fit.
        """
        moved = {name: t for name, t in tensors.items() if name.startswith(BUFFER)}
        try:
            engine.take_full_state({n: t for n, t in tensors.items() if n not in moved})
            fill(buffers, moved)
        except CheckpointError as error:
            raise CheckpointError(f"{place} cannot be loaded: {error}") from error
        pointer = self.folder / LATEST
        if pointer.is_file() and pointer.read_bytes().strip() == place.name.encode():
            self._held = _step_of(place)

    def _write(self, state: RunState, tensors: dict[str, Tensor]) -> None:
        place = self.folder / f"{_STEP}{state.step:06d}"
        with writing(place):
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(f"{PARTIAL}*"):
                _remove(left)
            partial = self.folder / f"{PARTIAL}{place.name}"
            partial.mkdir()
            write_checkpoint(partial, state, tensors)
            if place.exists():
                # Of a way that the run has left; `latest` does not point at it.
                _retire(place)
            partial.rename(place)
            sync(self.folder)
            write_text_whole(self.folder / LATEST, place.name + "\n")
            before = [old for old in checkpoints_in(self.folder) if _step_of(old) <= state.step]
            for old in before[: -self._keep_last]:
                _retire(old)


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first; each was whole when it got its name."""
    found = [p for p in folder.glob(f"{_STEP}*") if p.name.removeprefix(_STEP).isdecimal()]
    return sorted(found, key=_step_of)


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint that a run continues from, or None where it has none.

    Raises:
        CheckpointError: `latest` points at nothing.
    """
    folder = run_dir / CHECKPOINTS
    pointer = folder / LATEST
    found = checkpoints_in(folder)
    if not pointer.is_file():
        # A kill between the first checkpoint and its pointer.
        return found[-1] if found else None
    try:
        place = folder / Path(pointer.read_text(encoding="utf-8").strip()).name
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{pointer} is damaged: {error}; {advice(folder)}") from error
    if place not in found or not (place / STATE).is_file():
        raise CheckpointError(
            f"{pointer} points at {place.name!r}, which is no whole checkpoint; {advice(folder)}"
        )
    return place


def advice(folder: Path, damaged: Path | None = None) -> str:
    """Which whole checkpoint a run can go back to, and how."""
    for place in reversed(checkpoints_in(folder)):
        if place == damaged:
            continue
        try:
            read_checkpoint(place)
        except CheckpointError:
            continue
        return f"--resume={place.name} continues from the newest whole one"
    return "there is no whole one; begin again under another name"


def opened(place: Path) -> tuple[RunState, dict[str, Tensor]]:
    """Reads a checkpoint of a run, and says what else there is where it is damaged.

    Raises:
        CheckpointError: it is missing, damaged, or of another format.
    """
    try:
        return read_checkpoint(place)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {advice(place.parent, place)}") from error


def state_of(place: Path) -> RunState:
    """Reads the state of a checkpoint of a run, as `opened` does.

    Raises:
        CheckpointError: it is missing, damaged, or of another format.
    """
    try:
        return read_state(place)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {advice(place.parent, place)}") from error


def _step_of(place: Path) -> int:
    return int(place.name.removeprefix(_STEP))


def _retire(place: Path) -> None:
    """Removes a checkpoint; a kill in the middle leaves nothing that looks like a whole one."""
    leaving = place.with_name(f"{PARTIAL}old-{place.name}")
    place.rename(leaving)
    _remove(leaving)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
