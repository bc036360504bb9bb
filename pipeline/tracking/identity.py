"""Which MLflow run belongs to a run folder; kept there so that a resumed run continues it."""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import RegistryError
from pipeline.tracking.config import URI_VARIABLE, StoreLocation
from pipeline.tracking.journal import JOURNAL_FOLDER, write_json
from pipeline.tracking.secrets import redact_all, restore

IDENTITY_FILE = "run.json"


@dataclass
class RunIdentity:
    """The MLflow run of one run folder; run_id is None until the store was first reached."""

    key: str
    """Random name, written down before the run is created: a lost answer never makes two runs."""
    run_name: str
    experiment: str
    location: StoreLocation
    run_id: str | None = None
    parent: str | None = None
    """Id of the parent run, or the name of the sweep whose parent is found or made."""
    sweep: str | None = None
    """Name of the sweep whose parent this run is."""

    def remember(self, folder: Path, run_id: str) -> None:
        """Keeps the run id in the run folder's tracking folder."""
        self.run_id = run_id
        self.save(folder)

    def save(self, folder: Path) -> None:
        """Writes the identity into the run folder's tracking folder, passwords hidden."""
        write_json(folder / IDENTITY_FILE, redact_all(dataclasses.asdict(self)))


def new_identity(
    run_name: str,
    experiment: str,
    location: StoreLocation,
    parent: str | None = None,
    sweep: str | None = None,
) -> RunIdentity:
    """An identity for a run that MLflow does not know yet."""
    return RunIdentity(
        key=uuid.uuid4().hex,
        run_name=run_name,
        experiment=experiment,
        location=location,
        parent=parent,
        sweep=sweep,
    )


def read_identity(run_dir: str | Path, *whole: str) -> RunIdentity | None:
    """The identity kept in a run folder, or None when the run was never tracked.

    Args:
        run_dir: Folder of the run.
        whole: Addresses with passwords, from which one that was hidden is put back; that of the
            environment counts too.

    Raises:
        RegistryError: the file is there and cannot be read.
    """
    path = Path(run_dir) / JOURNAL_FOLDER / IDENTITY_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        location = values["location"]
        location["uri"] = restore(location["uri"], *whole, os.environ.get(URI_VARIABLE))
        return RunIdentity(**{**values, "location": StoreLocation(**location)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RegistryError(f"{path} cannot be read: {error}") from error
