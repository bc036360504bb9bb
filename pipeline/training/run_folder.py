"""The folder of a run: who may write there, and whether a run may be continued."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pipeline.config import RunConfig, save
from pipeline.errors import ConfigError, TrainingError
from pipeline.tracking.secrets import without_passwords
from pipeline.training.checkpoint import CHECKPOINTS, LATEST
from pipeline.training.checkpoint_folder import checkpoints_in
from pipeline.training.resume import Resume, check_settings
from pipeline.training.run_lock import LOCK

CONFIG = "config.yaml"
INTERRUPTED = "interrupted"
"""Present while a run that was asked to stop waits to be continued."""
_TRIES = 5
_PAUSE_S = 0.1


def run_folder(config: RunConfig) -> Path:
    """Where a run lives."""
    return Path(config.output_dir) / config.name


def check_folder(config: RunConfig, ranks: int, resume: Resume | None) -> None:
    """Refuses to overwrite a run, or to continue it as another.

    Args:
        config: The run.
        ranks: Number of ranks that will train.
        resume: How to continue it; None begins it.

    Raises:
        ConfigError: the folder holds a run, and it is not to be continued or has other settings.
        CheckpointError: its checkpoint is damaged.
    """
    folder = run_folder(config)
    if resume is not None:
        check_settings(folder, config, ranks, resume)
    elif (folder / CHECKPOINTS / LATEST).is_file() or checkpoints_in(folder / CHECKPOINTS):
        raise ConfigError(
            f"name = {config.name!r}: {folder} holds a run; --resume continues it, another name"
            " starts a new one"
        )


@contextmanager
def locked(config: RunConfig) -> Iterator[Path]:
    """Makes the folder, keeps it for this run, and writes its configuration.

    Raises:
        TrainingError: another process is training in it.
    """
    folder = run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        if not _taken(lock):
            raise TrainingError(f"another process is training in {folder}")
        (folder / INTERRUPTED).unlink(missing_ok=True)
        save(without_passwords(config), folder / CONFIG)
        yield folder


def _taken(lock: IO[str]) -> bool:
    """Takes a lock, unless it is held for longer than by one who only looks at it."""
    for _ in range(_TRIES):
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_PAUSE_S)
    return False
