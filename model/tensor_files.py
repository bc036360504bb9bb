"""Tensors as bytes, piece by piece: safetensors files and fingerprints of any size.

A checkpoint may be larger than what is free in memory, so nothing here holds more than one piece
of a tensor at a time; the tensors themselves may be views of a mapped file.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from model.errors import CheckpointError

_PIECE = 1 << 22
"""Elements that are converted at a time: 16 MiB in float32."""

_FORMAT_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

Advance = Callable[[int], None]
"""Called with the number of bytes that were just done."""


Whole = Callable[[Tensor], Tensor]
"""Called with a tensor of which a process may hold a part; returns all of it."""


def _as_is(tensor: Tensor) -> Tensor:
    return tensor


def _silent(count: int) -> None:
    del count


def stored_dtype(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype that a tensor is stored with: `dtype` for floating-point ones, else its own."""
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def stored_bytes(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> int:
    """Bytes of the tensors when floating-point ones are stored as `dtype` (None: as they are)."""
    return sum(tensor.numel() * stored_dtype(tensor, dtype).itemsize for tensor in tensors.values())


def write_safetensors(
    file: Path,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    advance: Advance = _silent,
) -> None:
    """Write a safetensors file without holding it in memory.

    The format is eight bytes with the length of a JSON header, the header, and the tensors without
    gaps (https://github.com/huggingface/safetensors#format). Tensors are ordered by the size of
    their elements, largest first, then by name, so that each one is aligned.

    Args:
        file: written from its beginning; flushing it to the disk is left to the caller.
        tensors: by name.
        dtype: of the floating-point tensors in the file; None keeps them.
        advance: told the bytes written.

    Raises:
        CheckpointError: a tensor is not finite, or not any more as `dtype`.
    """
    kinds = {name: stored_dtype(tensor, dtype) for name, tensor in tensors.items()}
    order = sorted(tensors, key=lambda name: (-kinds[name].itemsize, name))
    header, offset = {}, 0
    for name in order:
        end = offset + tensors[name].numel() * kinds[name].itemsize
        header[name] = {
            "dtype": _FORMAT_NAMES[kinds[name]],
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            for piece in _pieces(tensors[name]):
                converted = piece.to(kinds[name])
                if converted.is_floating_point() and not bool(converted.isfinite().all()):
                    raise CheckpointError(_not_finite(name, piece, kinds[name]))
                advance(stream.write(_bytes(converted)))


def fingerprint_of(
    tensors: Mapping[str, Tensor],
    *,
    stored: torch.dtype | None = None,
    loaded: torch.dtype | None = None,
    whole: Whole = _as_is,
    advance: Advance = _silent,
) -> str:
    """Return `sha256:<hex>` over names, dtypes, shapes and bytes, in order of name.

    Args:
        tensors: by name.
        stored: dtype that floating-point tensors are rounded to first, as on disk; None for none.
        loaded: dtype that they are hashed with, as in memory; None for the one they have then.
        whole: collects a tensor that is spread over processes; one is held at a time.
        advance: told the bytes of the tensors as given.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = whole(tensors[name])
        kept = stored_dtype(tensor, stored)
        hashed = stored_dtype(tensor, loaded) if loaded is not None else kept
        digest.update(f"{name} {hashed} {tuple(tensor.shape)}\n".encode())
        for piece in _pieces(tensor):
            digest.update(_bytes(piece.to(kept).to(hashed)))
            advance(piece.numel() * piece.element_size())
    return f"sha256:{digest.hexdigest()}"


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    for piece in tensor.detach().contiguous().flatten().split(_PIECE):
        yield piece.cpu()


def _bytes(piece: Tensor) -> memoryview:
    return piece.view(torch.uint8).numpy().data


def _not_finite(name: str, piece: Tensor, kind: torch.dtype) -> str:
    if bool(piece.isfinite().all()):
        largest = float(piece.abs().max())
        short = str(kind).removeprefix("torch.")
        return f"{name} has values up to {largest:.3g}, too large for {short}: choose another dtype"
    return f"{name} holds values that are not finite: the checkpoint is damaged"
