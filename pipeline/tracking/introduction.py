"""What a run says of itself when it starts: names, settings, versions, data."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.manifest import read_manifest
from pipeline.config_tree import plain
from pipeline.errors import DataError
from pipeline.tracking.config import resolve_store
from pipeline.tracking.entries import Entry
from pipeline.tracking.identity import RunIdentity, new_identity
from pipeline.tracking.journal import JOURNAL_FOLDER, Journal
from pipeline.tracking.provenance import (
    dataset_entry,
    environment,
    flatten,
    git_state,
    hardware,
    library_versions,
)

if TYPE_CHECKING:
    from pipeline.config import RunConfig

log = logging.getLogger(__name__)

NOTE_TAG = "mlflow.note.content"
"""MLflow shows this tag as the description of a run."""
ENVIRONMENT_FILE = "environment.json"


def introduce(journal: Journal, config: RunConfig) -> RunIdentity:
    """Gives a run its identity, and writes it down before MLflow hears of it."""
    tracking = config.tracking
    identity = new_identity(
        tracking.run_name or run_name(config),
        tracking.experiment or experiment_name(config),
        resolve_store(tracking, config.output_dir),
        tracking.parent_run,
    )
    identity.save(journal.folder)
    return identity


def run_name(config: RunConfig) -> str:
    """A name that tells a run from its neighbours in a list."""
    return f"{config.name} ({tuned_with(config)}, lr {config.optimizer.lr:g}, seed {config.seed})"


def tuned_with(config: RunConfig) -> str:
    """The tuning method, with the length of its prompts where it has some."""
    method = config.tuning.method
    length = getattr(getattr(config.tuning, method, None), "length", None)
    return method if length is None else f"{method} {length}"


def experiment_name(config: RunConfig) -> str:
    """What is learned and on which base: runs that share both are worth comparing."""
    tasks = set(config.data.tasks or config.data.task_weights or ())
    for folder in config.data.train if not tasks else ():
        try:
            tasks |= set(read_manifest(folder).tasks)
        except DataError:
            continue  # the reader of the data says so, and stops the run
    base = Path(config.base.path).name
    return f"{', '.join(sorted(tasks)) or 'prefixworks'} on {base}"


def opening(run_dir: Path, config: RunConfig) -> Iterator[Entry]:
    """The entries of a run that starts or is resumed."""
    tags = {f"library.{name}": version for name, version in library_versions().items()}
    tags |= {f"hardware.{name}": value for name, value in hardware().items()}
    tags |= git_state() | {"mlflow.source.name": "prefixworks train", "run.folder": str(run_dir)}
    yield {"kind": "params", "values": flatten(plain(config))}
    yield {"kind": "tags", "values": {**tags, NOTE_TAG: _note(run_dir, config)}}
    yield from inputs({"train": config.data.train, "validation": config.data.validation})
    resolved = run_dir / "config.yaml"
    if resolved.is_file():
        yield artifact(resolved, None)
    record = run_dir / JOURNAL_FOLDER / ENVIRONMENT_FILE
    record.write_text(json.dumps(environment(), indent=2) + "\n", encoding="utf-8")
    yield artifact(record, None)


def inputs(folders: Mapping[str, Sequence[str]]) -> Iterator[Entry]:
    """Entries that tie data sets to a run.

    Args:
        folders: Prepared data sets by context: `train`, `validation` or `evaluation`.
    """
    for context, names in folders.items():
        for folder in names:
            try:
                yield dataset_entry(folder, context)
            except DataError as error:
                # The reader of the data will stop the run, if it must; the record never does.
                log.warning("the %s data are not recorded: %s", context, error)


def artifact(path: Path, to: str | None) -> Entry:
    """The entry of a file that goes into a folder of the run's files; None for the top."""
    return {"kind": "artifact", "path": str(path.resolve()), "to": to}


def _note(run_dir: Path, config: RunConfig) -> str:
    train = ", ".join(f"`{folder}`" for folder in config.data.train) or "nothing"
    held_out = ", ".join(f"`{folder}`" for folder in config.data.validation) or "nothing"
    return (
        f"Trains **{tuned_with(config)}** on the base `{config.base.path}`.\n\n"
        f"- learns from {train}\n"
        f"- validates on {held_out}\n"
        f"- run folder `{run_dir}`\n\n"
        "*Artifacts*: `config.yaml` is the whole configuration, `environment.json` what was"
        " installed and the hardware, `pictures/curves.png` the curves, and"
        " `pictures/predictions` the same validation samples at each validation.\n"
    )
