"""Every error that a person can act on, in one place.

Anything else that escapes a command is a defect and keeps its traceback.
"""

from __future__ import annotations

from data_prep.errors import DataError
from model.errors import CheckpointError

EXIT_INTERRUPTED = 75
"""Exit status of a run that saved its state and asks to be started again (EX_TEMPFAIL)."""


class ConfigError(Exception):
    """A configuration that cannot work: one line with the path, the value and what is allowed."""


class TrainingError(Exception):
    """A training run that cannot go on.

    Attributes:
        exit_code: EXIT_INTERRUPTED where the run saved its state and can be resumed, else 1.
    """

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class RegistryError(Exception):
    """A prompt artifact or registry entry that is missing, damaged, or made for another base."""


PrefixworksError = (ConfigError, DataError, CheckpointError, TrainingError, RegistryError)
"""For ``except``: the five errors whose message is all that a user needs to see."""

__all__ = [
    "EXIT_INTERRUPTED",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "PrefixworksError",
    "RegistryError",
    "TrainingError",
]
