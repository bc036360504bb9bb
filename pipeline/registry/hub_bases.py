"""Bases from the Hugging Face hub, converted once into a cache of base folders."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from model.errors import CheckpointError
from model.layouts.conversion import convert
from model.layouts.reading import open_checkpoint
from model.layouts.vocabulary import demand_tokenizer

log = logging.getLogger(__name__)

CACHE_VARIABLE = "PREFIXWORKS_CACHE"
"""Environment variable: folder of converted bases; `~/.cache/prefixworks` where it is not set."""


def hub_base(place: str) -> Path:
    """The base folder of a model on the hub, fetched and converted where it is not cached.

    Args:
        place: `owner/name`, or `owner/name@revision`.

    Raises:
        CheckpointError: the hub has no such model or is not reached, or it is no OFA.
    """
    folder = cache_folder() / "bases" / place.replace("/", "--")
    if folder.is_dir():
        return folder
    checkpoint = open_checkpoint(place)
    log.warning("converting %s into %s, once", place, folder)
    tokenizer = demand_tokenizer(checkpoint.folder, checkpoint.config.vocab)
    try:
        convert(checkpoint, tokenizer, folder, dtype=None, advance=lambda _: None)
    except CheckpointError:
        # Another process may have been first; what it made is the same.
        if not folder.is_dir():
            raise
    return folder


def cache_folder() -> Path:
    """Where converted bases are kept."""
    said = os.environ.get(CACHE_VARIABLE)
    return Path(said) if said else Path.home() / ".cache" / "prefixworks"
