"""Ray's Jobs API: a client of a cluster's dashboard, whose errors are one line each."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from jobs.launch.ray.config import check_address
from pipeline.errors import DataError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_HERE = "http://127.0.0.1:8265"
_KNOCK_S = 10.0
_LONGEST = 500
"""Characters of what Ray says that are shown."""


def address(configured: str | None) -> str:
    """The dashboard's address: as configured, else as the environment has it.

    Raises:
        ConfigError: what the environment has is none.
    """
    if configured is not None:
        return configured.rstrip("/")
    for variable in _VARIABLES:
        if found := os.environ.get(variable):
            check_address(variable, found)
            return found.rstrip("/")
    return _HERE


@contextmanager
def client(where: str) -> Iterator[JobSubmissionClient]:
    """Connects to the Jobs API at an address.

    Raises:
        DataError: nobody answers there, or Ray refuses what it is asked for inside the block.
    """
    _knock(where)
    try:
        from ray.job_submission import JobSubmissionClient

        # Ray takes these variables over the address that it is given.
        before = {name: os.environ.pop(name) for name in _VARIABLES if name in os.environ}
        try:
            connected = JobSubmissionClient(where)
        finally:
            os.environ.update(before)
        yield connected
    except ImportError as error:
        raise DataError(
            f"jobs are sent to Ray by its extra: pip install 'prefixworks[cluster]' ({error})"
        ) from error
    except (RuntimeError, ConnectionError, OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise DataError(f"Ray at {where}: {said[:_LONGEST]}") from error


def _knock(where: str) -> None:
    """Raises DataError when nobody listens, which Ray's client takes minutes to notice."""
    parts = urlsplit(where)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), _KNOCK_S).close()
    except OSError as error:
        raise DataError(
            f"no Ray dashboard at {where}: {error.strerror or error}; give ray.address"
        ) from error
