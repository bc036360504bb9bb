"""The folder of a sweep, and what the folders of its trials say of them.

Everything that a sweep remembers is in these files, which all nodes see: so it goes on after any
kill, whoever runs its trials. What Ray Tune would keep are pickles, which are never read back.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from jobs.sweep.config import SweepConfig
from jobs.sweep.trials import Metric, Sweep, Trial
from pipeline.config_reader import load, save
from pipeline.config_tree import plain
from pipeline.errors import ConfigError, TrainingError
from pipeline.training.checkpoint import write_json_whole
from pipeline.training.hooks import METRICS_FILE
from pipeline.training.run_lock import in_use
from pipeline.training.summary import SUMMARY_FILE

CONFIG = "sweep.yaml"
STOPPED = "stopped.json"
"""In a trial's folder: it fell behind, and is not to be trained on."""
FAILURE = "failure.json"
"""In a trial's folder: how its last try broke."""
ASKED = "asked-to-stop"
"""In the folder of a sweep that Tune runs: every trial is to save and end."""
_LOCK = ".lock"
_FREE = ("ray_address", "concurrency", "max_failures", "resources", "settings.tracking")
"""What may differ when a sweep goes on."""

Word = Literal["waiting", "running", "interrupted", "finished", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """A validation of a trial."""

    step: int
    value: float


def claim(sweep: Sweep, *, resume: bool) -> None:
    """Makes the folder of a sweep, or finds it to be that of this sweep.

    Raises:
        ConfigError: it holds a sweep that is not to be continued, or another one.
    """
    path = sweep.folder / CONFIG
    if not path.exists():
        save(sweep.config, path)
        return
    if not resume:
        raise ConfigError(
            f"name = {sweep.config.name!r}: {sweep.folder} holds a sweep; --resume continues it,"
            " another name starts a new one"
        )
    before, now = _flat(plain(load(SweepConfig, [path]))), _flat(plain(sweep.config))
    for setting in sorted(before.keys() | now.keys()):
        was, is_ = before.get(setting, "nothing"), now.get(setting, "nothing")
        if was != is_ and not setting.startswith(_FREE):
            raise ConfigError(
                f"{setting} = {is_}: the sweep in {sweep.folder} began with {was}; another name"
                " starts a new sweep"
            )


@contextmanager
def held(sweep: Sweep) -> Iterator[None]:
    """Keeps others from running the sweep meanwhile.

    Raises:
        TrainingError: another process does.
    """
    with (sweep.folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise TrainingError(f"another process is running the sweep {sweep.folder}") from error
        (sweep.folder / ASKED).unlink(missing_ok=True)
        yield


def word_of(trial: Trial) -> Word:
    """How a trial stands, by its folder."""
    folder = trial.folder
    if (folder / SUMMARY_FILE).is_file():
        return "finished"
    if in_use(folder):
        return "running"
    if (folder / STOPPED).is_file():
        return "stopped"
    if (folder / FAILURE).is_file():
        return "failed"
    return "interrupted" if (folder / METRICS_FILE).is_file() else "waiting"


def reports(trial: Trial, metric: Metric) -> list[Report]:
    """The validations of a trial that measured the metric, in order."""
    path, found = trial.folder / METRICS_FILE, []
    if not path.is_file():
        return []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            if metric.name in record:
                found.append(Report(step=int(record["step"]), value=float(record[metric.name])))
        except (ValueError, KeyError, TypeError):
            continue  # a line that is being written, or that a kill cut short
    return found


def mark(trial: Trial, name: str, values: Mapping[str, object]) -> None:
    """Writes a note into a trial's folder."""
    trial.folder.mkdir(parents=True, exist_ok=True)
    write_json_whole(trial.folder / name, dict(values))


def _flat(tree: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(tree, dict) or not tree:
        return {prefix.removesuffix("."): json.dumps(tree)}
    return {
        path: text
        for key, value in tree.items()
        for path, text in _flat(value, f"{prefix}{key}.").items()
    }
