"""Running kubectl, with what it says made into errors of ours."""

from __future__ import annotations

import json
from typing import Any

from jobs.launch import commands
from pipeline.errors import DataError

_LONGEST_S = 120.0


def run(command: list[str]) -> str:
    """What kubectl prints.

    Raises:
        DataError: it is missing, refuses or does not answer.
    """
    advice = "launch where it is set up for the cluster"
    return commands.run(command, missing=advice, longest_s=_LONGEST_S)


def shown(command: list[str]) -> dict[str, Any] | None:
    """The object that kubectl is asked for, or None where there is none.

    Raises:
        DataError: as of `run`, or what it prints is no object.
    """
    text = run([*command, "--output=json"])
    if not text.strip():
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise DataError(f"kubectl printed no JSON: {text[:200]!r}") from error
    if not isinstance(found, dict):
        raise DataError(f"kubectl printed no object: {text[:200]!r}")
    return found
