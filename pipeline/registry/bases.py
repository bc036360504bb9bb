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
from model.layouts.detection import is_hub_id
from model.ofa.model import OFA
from model.tokenizer import OFATokenizer
from pipeline.errors import CheckpointError, RegistryError
from pipeline.registry.hub_bases import hub_base
from pipeline.registry.record import PromptRecord

BASE_VARIABLE = "PREFIXWORKS_BASE"
"""Environment variable: the base that prompts are put on, as a folder, a packaged base's name or
`owner/name[@revision]` on the Hugging Face hub; or a list of `name=place` for several bases."""

_loaded: dict[Path, LoadedBase] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class LoadedBase:
    """A base in eval mode with what prediction needs beside it."""

    model: OFA
    tokenizer: OFATokenizer
    fingerprint: str


def base_place(record: PromptRecord) -> str:
    """Where to look for a prompt's base: what PREFIXWORKS_BASE says, else the base's own name.

    Raises:
        RegistryError: PREFIXWORKS_BASE lists places by name and one of them is empty.
    """
    name = record.meta.base.name
    said = os.environ.get(BASE_VARIABLE, "").strip()
    if "=" not in said:
        return said or name
    places: dict[str, str] = {}
    for entry in said.split(","):
        key, _, place = (part.strip() for part in entry.partition("="))
        if not key or not place:
            raise RegistryError(f"{BASE_VARIABLE}: {entry.strip()!r} is not name=place")
        places[key] = place
    return places.get(name, name)


def shared_base(place: str) -> LoadedBase:
    """Loads a base, once per process.

    Args:
        place: Folder of a base, the name of a packaged one, or an id on the Hugging Face hub.

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
        # The hub is only asked for what is no place here.
        found = hub_base(place) if is_hub_id(place) else resolve_base(place)
        return found.resolve()
    except CheckpointError as error:
        raise RegistryError(
            f"no base at {place!r}: set {BASE_VARIABLE} to the base's folder or hub id ({error})"
        ) from error
