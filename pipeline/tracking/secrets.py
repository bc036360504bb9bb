"""Passwords inside addresses: never written down, and put back from the environment when needed."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.errors import RegistryError

if TYPE_CHECKING:
    from pipeline.config import RunConfig

HIDDEN = "***"
"""Stands where a secret was."""

_IN_ADDRESS = re.compile(r"""(://[^/\s:@"']*:)[^/\s"']*@""")
_IN_QUERY = re.compile(
    r"""([?&][^=&\s"']*(?:password|token|secret|signature|sig|key)=)[^&\s"']+""", re.IGNORECASE
)
_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_SHORTEST = 6
"""Characters of a password that is looked for by itself; shorter ones are parts of other words."""


def redact(text: str) -> str:
    """Hides the passwords of addresses in a text, and MLflow's own password and token."""
    hidden = _IN_QUERY.sub(rf"\1{HIDDEN}", _IN_ADDRESS.sub(rf"\1{HIDDEN}@", text))
    for variable in _VARIABLES:
        secret = os.environ.get(variable, "")
        if len(secret) >= _SHORTEST:
            hidden = hidden.replace(secret, HIDDEN)
    return hidden


def redact_all(value: Any) -> Any:
    """The same for every text inside plain values."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redact_all(each) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [redact_all(each) for each in value]
    return value


def without_passwords(config: RunConfig) -> RunConfig:
    """A run's configuration as it may be written down."""
    tracking = config.tracking
    hidden = dataclasses.replace(
        tracking,
        uri=_redacted(tracking.uri),
        artifact_root=_redacted(tracking.artifact_root),
    )
    return dataclasses.replace(config, tracking=hidden)


def _redacted(text: str | None) -> str | None:
    return None if text is None else redact(text)


def restore(address: str, *candidates: str | None) -> str:
    """Puts a hidden password back, where a whole address that fits is at hand.

    Args:
        address: As it was written down.
        candidates: Whole addresses, such as that of the environment.
    """
    if HIDDEN not in address:
        return address
    fitting = [each for each in candidates if each and redact(each) == address]
    return fitting[0] if fitting else address


def require_whole(address: str) -> None:
    """Refuses an address whose password is hidden.

    Raises:
        RegistryError: the password is missing.
    """
    if HIDDEN in address:
        raise RegistryError(
            f"{address}: its password was not written down; set MLFLOW_TRACKING_URI to the whole"
            " address and repeat"
        )
