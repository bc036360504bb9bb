"""A base folder made of any checkpoint, tensor by tensor."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch

from model.checkpoint import CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE
from model.errors import CheckpointError
from model.layouts.reading import Checkpoint
from model.tensor_files import Advance, fingerprint_of, stored_bytes, write_safetensors
from model.tokenizer import OFATokenizer


def convert(
    checkpoint: Checkpoint,
    tokenizer: OFATokenizer,
    folder: Path,
    *,
    dtype: torch.dtype | None,
    advance: Advance,
) -> None:
    """Write a base folder, whole or not at all.

    Memory: the pages of the mapped checkpoint, which the system may take back at any time, and a
    piece of a tensor.

    Args:
        checkpoint: what to convert.
        tokenizer: goes into the folder.
        folder: must not exist.
        dtype: of the floating-point tensors on disk; None keeps them.
        advance: told the bytes written.

    Raises:
        CheckpointError: the folder exists, the disk has too little space, or a tensor is not
            finite in the dtype.
    """
    if folder.exists():
        raise CheckpointError(f"{folder} exists; choose another folder or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed, free = (
        stored_bytes(checkpoint.tensors, dtype),
        shutil.disk_usage(folder.parent).free,
    )
    if needed > free:
        raise CheckpointError(
            f"{folder} needs {needed / 1e9:.2f} GB, {folder.parent} has {free / 1e9:.2f} GB free"
        )
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        new = Path(temporary) / "base"
        new.mkdir()
        write_safetensors(new / WEIGHTS_FILE, checkpoint.tensors, dtype=dtype, advance=advance)
        (new / CONFIG_FILE).write_text(json.dumps(checkpoint.config.to_dict(), indent=2) + "\n")
        tokenizer.save(new / TOKENIZER_FILE)
        for file in new.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        # A folder that appeared meanwhile stays: rename refuses one with files in it.
        try:
            new.rename(folder)
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be made: {error.strerror}") from error


def base_fingerprint(checkpoint: Checkpoint, *, dtype: torch.dtype | None, advance: Advance) -> str:
    """Return the fingerprint of the base that a checkpoint makes, as `load_base` loads it.

    Args:
        checkpoint: what to convert.
        dtype: of the floating-point tensors on disk; None keeps them.
        advance: told the bytes read.
    """
    return fingerprint_of(checkpoint.tensors, stored=dtype, loaded=torch.float32, advance=advance)
