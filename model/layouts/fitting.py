"""Foreign tensors made to fit the model that their settings describe, or named as misfits.

Dimensions: N rows of a table, D width.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint import DERIVED_KEYS, check_fit
from model.errors import CheckpointError
from model.layouts.raw import RawCheckpoint
from model.layouts.shapes import empty_model
from model.ofa import OFAConfig

_EMBEDDING = "encoder.embed_tokens.weight"
_TIED = ("decoder.embed_tokens.weight", "decoder.output_projection.weight")
_IMAGE_TABLES = ("encoder.embed_image_positions.weight", "decoder.embed_image_positions.weight")


def with_embedding(tensors: Mapping[str, Tensor], origin: Path) -> dict[str, Tensor]:
    """Return the tensors with one embedding for encoder, decoder and output.

    Files may hold it up to three times, or only under one of its names.

    Raises:
        CheckpointError: the copies differ, so the checkpoint is of another model.
    """
    found = [name for name in (_EMBEDDING, *_TIED) if name in tensors]
    if not found:
        return dict(tensors)
    embedding = tensors[found[0]]
    for name in found[1:]:
        if tensors[name].data_ptr() != embedding.data_ptr() and not torch.equal(
            tensors[name], embedding
        ):
            raise CheckpointError(
                f"{origin}: {name} differs from {found[0]}; this model has one embedding for both"
            )
    return {**tensors, _EMBEDDING: embedding}


def fit(
    config: OFAConfig, raw: RawCheckpoint, origin: Path
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of the model, and a line for each that was changed.

    Tables of absolute image positions that are too short get new rows at their end, drawn from
    N(0, 1/D) as the reference does when it loads them; here a fixed seed draws them, so that the
    same checkpoint always makes the same base. Relative tables are never extended.

    Raises:
        CheckpointError: names the first missing, unexpected or misshaped keys.
    """
    tensors = {name: tensor for name, tensor in raw.tensors.items() if name not in DERIVED_KEYS}
    notes = []
    for name in _IMAGE_TABLES:
        table = tensors.get(name)
        if table is None or table.dim() != 2 or not table.is_floating_point():
            continue
        added = config.image_position_rows - len(table)
        if added > 0:
            tensors[name] = _extended(table, added, name)
            notes.append(f"{raw.spell(name)}: {added} rows drawn at the end of {len(table)}")
    check_fit(empty_model(config).state_dict(), tensors, origin, raw.spell)
    return tensors, tuple(notes)


def _extended(table_ND: Tensor, added: int, name: str) -> Tensor:
    width = table_ND.shape[1]
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    new_ND = torch.randn(added, width, generator=generator) * width**-0.5
    return torch.cat([table_ND, new_ND.to(table_ND.dtype)])
