"""The folder of a run: who may write there, and whether a run may be continued."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig, load, save
from pipeline.config_tree import plain
from pipeline.errors import ConfigError, TrainingError
from pipeline.tracking.secrets import without_passwords
from pipeline.training.checkpoint import CHECKPOINTS, LATEST

CONFIG = "config.yaml"
INTERRUPTED = "interrupted"
"""Present while a run that was asked to stop waits to be continued."""
_LOCK = ".lock"
_FREE = (
    "output_dir",
    "tracking.",
    "evaluation.",
    "engine.threads_per_process",
    "data.cache_",
    "data.loader",
    "training.log_every_steps",
    "training.save_every_steps",
    "training.keep_last",
    "training.step_timeout_s",
)
"""Settings that change nothing about what comes out of a run."""


def run_folder(config: RunConfig) -> Path:
    """Where a run lives."""
    return Path(config.output_dir) / config.name


def check_folder(config: RunConfig, resume: bool) -> None:
    """Refuses to overwrite a run, or to continue it as another.

    Raises:
        ConfigError: the folder holds a run, and it is not to be continued or has other settings.
    """
    folder = run_folder(config)
    if not (folder / CHECKPOINTS / LATEST).is_file():
        return
    if not resume:
        raise ConfigError(
            f"name = {config.name!r}: {folder} holds a run; --resume continues it, another name"
            " starts a new one"
        )
    before, now = _flat(plain(load(RunConfig, [folder / CONFIG]))), _flat(plain(config))
    for path in sorted(set(before) | set(now)):
        if before.get(path) != now.get(path) and not path.startswith(_FREE):
            raise ConfigError(
                f"{path} = {now.get(path)}: the run that is to be continued has {before.get(path)}"
            )


@contextmanager
def locked(config: RunConfig) -> Iterator[Path]:
    """Makes the folder, keeps it for this run, and writes its configuration.

    Raises:
        TrainingError: another process is training in it.
    """
    folder = run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise TrainingError(f"another process is training in {folder}") from error
        (folder / INTERRUPTED).unlink(missing_ok=True)
        save(without_passwords(config), folder / CONFIG)
        yield folder


def _flat(tree: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(tree, dict):
        return {prefix.removesuffix("."): json.dumps(tree)}
    return {
        path: value
        for key, branch in tree.items()
        for path, value in _flat(branch, f"{prefix}{key}.").items()
    }
