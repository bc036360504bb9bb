"""Running kubectl, with what it says made into errors of ours."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from pipeline.errors import DataError

_LONGEST_S = 120.0


def run(command: list[str]) -> str:
    """What kubectl prints.

    Raises:
        DataError: it is missing, refuses or does not answer.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_LONGEST_S
        )
    except FileNotFoundError as error:
        raise DataError(
            "kubectl is not on PATH; launch where it is set up for the cluster"
        ) from error
    except OSError as error:
        raise DataError(f"kubectl cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise DataError(f"kubectl gave no answer within {_LONGEST_S:.0f} s") from error
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or f"exit status {error.returncode}"
        raise DataError(f"kubectl failed: {said}") from error
    return done.stdout


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
