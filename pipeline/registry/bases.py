"""Bases for prediction: found by name or by PREFIXWORKS_BASE, loaded once in a process.

A process may serve any number of prompts on one base, so the base is loaded and fingerprinted once
and shared. Methods that write into the base's own weights get a copy of their own.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint import fingerprint, load_base, resolve_base
from model.ofa.model import OFA
from model.tokenizer import OFATokenizer
from pipeline.errors import CheckpointError, RegistryError
from pipeline.registry.record import PromptRecord

BASE_VARIABLE = "PREFIXWORKS_BASE"
"""Environment variable: the folder or name of the base that prompts are put on."""

_loaded: dict[Path, LoadedBase] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class LoadedBase:
    """A base in eval mode with what prediction needs beside it."""

    model: OFA
    tokenizer: OFATokenizer
    fingerprint: str


def base_place(record: PromptRecord) -> str:
    """Where to look for a prompt's base: PREFIXWORKS_BASE, else the base's own name."""
    return os.environ.get(BASE_VARIABLE) or record.meta.base.name


def shared_base(place: str) -> LoadedBase:
    """Loads a base, once per process.

    Args:
        place: Folder of a base, or the name of the packaged one.

    Raises:
        RegistryError: there is no base at that place.
        CheckpointError: there is one and it cannot be read.
    """
    folder = _folder(place)
    # One lock for all bases: two threads that want the same one must not both load it.
    with _lock:
        if folder not in _loaded:
            _loaded[folder] = read_base(place)
        return _loaded[folder]


def read_base(place: str) -> LoadedBase:
    """Loads a base that nobody else holds; see shared_base for arguments and errors."""
    folder = _folder(place)
    model = load_base(str(folder)).eval()
    tokenizer = OFATokenizer.from_file(folder / "tokenizer.json")
    return LoadedBase(model=model, tokenizer=tokenizer, fingerprint=fingerprint(model))


def _folder(place: str) -> Path:
    try:
        return resolve_base(place).resolve()
    except CheckpointError as error:
        raise RegistryError(
            f"no base at {place!r}: set {BASE_VARIABLE} to the folder of the base ({error})"
        ) from error
