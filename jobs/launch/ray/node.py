"""What every process of a job does first on its node: variables, secrets, folder.

Ray calls `enter` in each of its workers before they work (`worker_process_setup_hook`). The
variables come from the job's own file, since Ray replaces `${NAME}` inside those of a runtime
environment, and shows them to everyone who sees the dashboard.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from jobs.launch.secrets_file import read_secrets
from pipeline.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[3]
"""Where Ray has unpacked the job."""

HOOK = f"{__name__}.enter"
"""By what name Ray knows the function."""


def enter() -> None:
    """Puts this process where the job is meant to run.

    Raises:
        ConfigError: the node lacks a file or folder that the job names.
        DataError: the job's own file is missing.
    """
    job = description()["node"]
    os.environ.update(job["environment"])
    for path in job["secrets"]:
        os.environ.update(read_secrets(Path(path)))
    # Whatever the job says of it: what is started here runs the code that was sent.
    found = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(ROOT), *found]))
    try:
        os.chdir(job["work_folder"])
    except OSError as error:
        raise ConfigError(
            f"ray.work_folder = {job['work_folder']!r}: node {socket.gethostname()} has no such"
            f" folder ({error.strerror}), and relative paths are meant from there; name one that"
            " all nodes see"
        ) from error


def description(folder: Path | None = None) -> dict[str, Any]:
    """What was sent along for the nodes.

    Args:
        folder: The job's folder; None takes what Ray has unpacked.

    Raises:
        DataError: there is nothing like it.
    """
    path = (folder or ROOT) / "ray.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; jobs are sent by launch") from error
    return found
