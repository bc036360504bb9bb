"""Checkpoints from the Hugging Face hub, into the cache of its own client."""

from __future__ import annotations

from pathlib import Path

from model.errors import CheckpointError
from model.layouts.huggingface import PICKLED, SAFETENSORS

_SMALL = ["config.json", "vocab.json", "merges.txt", "*.index.json"]


def fetch(place: str) -> Path:
    """Download a model, or find it in the cache, and return its folder.

    Args:
        place: `owner/name`, or `owner/name@revision` for a branch, tag or commit.

    Raises:
        CheckpointError: there is no such model, or it can neither be reached nor found.
    """
    # Its import takes a second, and most checkpoints lie on a disk.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    name, _, revision = place.partition("@")

    def download(weights: str) -> Path:
        patterns = [*_SMALL, weights]
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))

    try:
        folder = download(SAFETENSORS.replace(".", "*."))
        # The same weights again as pickles are only fetched where there is nothing else.
        if not any(folder.glob("model*.safetensors")):
            folder = download(PICKLED.replace(".", "*."))
    except (OSError, ValueError, EntryNotFoundError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{place} is no file or folder here, and as a model of the Hugging Face hub it was"
            f" neither reached nor found in the cache ({type(error).__name__}: {reason})"
        ) from error
    return folder
