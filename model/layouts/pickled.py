"""Files of torch.save, read without running anything that they bring along."""

from __future__ import annotations

import argparse
import contextlib
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from model.errors import CheckpointError

_ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [argparse.Namespace]
"""Published checkpoints keep their settings in one. Unpickling it sets attributes and calls no
code, and nothing else is needed beside the tensors and plain containers that torch allows."""

_ZIP = b"PK\x03\x04"
_FORBIDDEN = re.compile(r"GLOBAL ([\w.]+)")
_DAMAGED = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    struct.error,
)
"""What torch raises for files that are cut off, or are something else."""


def load_pickled(file: Path) -> Any:
    """Read a file of torch.save onto the CPU, its tensors as views of the mapped file.

    Files older than torch 1.6 cannot be mapped and are read into memory.

    Raises:
        CheckpointError: the file is missing or damaged, or holds anything but tensors, plain
            values and `argparse.Namespace`; then it names what, and none of it has run.
    """
    try:
        with file.open("rb") as stream:
            mapped = stream.read(len(_ZIP)) == _ZIP
        with torch.serialization.safe_globals(_ALLOWED):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing") from error
    except pickle.UnpicklingError as error:
        names = _forbidden(file, str(error))
        if not names:
            raise CheckpointError(f"{file} is damaged, or not a file of torch.save") from error
        raise CheckpointError(
            f"{file} is refused: it holds {', '.join(names[:3])}, and only tensors, plain values"
            " and argparse.Namespace are read; where you trust the file, save its 'cfg' or 'args'"
            " and its 'model' alone"
        ) from error
    except _DAMAGED as error:
        raise CheckpointError(f"{file} is damaged, or not a file of torch.save") from error


def _forbidden(file: Path, message: str) -> list[str]:
    """Names of what the file would import; torch's message names the first only."""
    names = set(_FORBIDDEN.findall(message))
    # Older files cannot be listed; then the first name has to do.
    with torch.serialization.safe_globals(_ALLOWED), contextlib.suppress(*_DAMAGED):
        names.update(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    return sorted(names)
