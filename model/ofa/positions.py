"""Relative-position buckets and the attention biases that positions add.

OFA never adds positions to the content ("disentangled"): they enter attention as biases. The bias
of a pair of positions depends on the shapes of a batch only, never on its content, so it is
computed once for a shape and shared by all rows.

Dimensions: H heads, I query positions, J key positions, D width, N positions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ALIGNMENT = 8
"""Elements to a multiple of which rows of a bias are spaced, as the attention kernels want them."""


def token_buckets(
    query_I: Tensor, key_J: Tensor, *, bucket_size: int, max_positions: int
) -> Tensor:
    """Return the bucket `[I, J]` of each pair of text positions.

    Distances up to `bucket_size / 2` have a bucket each, larger ones share logarithmic buckets up
    to `max_positions`. The arithmetic is float32 on purpose: its rounding is part of the rule.
    """
    distance_IJ = query_I[:, None] - key_J[None, :]
    middle = bucket_size // 2
    magnitude_IJ = distance_IJ.abs().clamp(min=middle).to(torch.float32)
    stretch = math.log((max_positions - 1) / middle)
    far_IJ = torch.ceil(torch.log(magnitude_IJ / middle) / stretch * (middle - 1)) + middle
    bucket_IJ = torch.where(
        distance_IJ.abs() <= middle, distance_IJ, distance_IJ.sign() * far_IJ.to(torch.int64)
    )
    return bucket_IJ + bucket_size - 1


def image_position_ids(rows: int, columns: int, bucket_size: int, device: torch.device) -> Tensor:
    """Return the position ids `[rows * columns]` of a feature map, row by row; ids start at 1."""
    row = torch.arange(rows, device=device)[:, None]
    column = torch.arange(columns, device=device)[None, :]
    return (row * bucket_size + column + 1).flatten()


def image_buckets(query_I: Tensor, key_J: Tensor, *, bucket_size: int) -> Tensor:
    """Return the bucket `[..., I, J]` of each pair of image position ids.

    Id 0 is no place in the image: pairs with it use the last three buckets.
    """
    span = 2 * bucket_size - 1
    query_row, query_column = (query_I - 1) // bucket_size, (query_I - 1) % bucket_size
    key_row, key_column = (key_J - 1) // bucket_size, (key_J - 1) % bucket_size
    row_IJ = query_row[..., :, None] - key_row[..., None, :] + bucket_size - 1
    column_IJ = query_column[..., :, None] - key_column[..., None, :] + bucket_size - 1
    bucket_IJ = row_IJ * span + column_IJ
    bucket_IJ = bucket_IJ.masked_fill((query_I == 0)[..., :, None], span**2)
    bucket_IJ = bucket_IJ.masked_fill((key_J == 0)[..., None, :], span**2 + 1)
    both = (query_I == 0)[..., :, None] & (key_J == 0)[..., None, :]
    return bucket_IJ.masked_fill(both, span**2 + 2)


def absolute_bias(query_ID: Tensor, key_JD: Tensor, heads: int, scale: float) -> Tensor:
    """Return scaled dot products `[..., H, I, J]` of projected position embeddings, by head."""

    def split(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], heads, -1).transpose(-2, -3)

    return (split(query_ID) * scale) @ split(key_JD).transpose(-1, -2)


def relative_bias(bucket_IJ: Tensor, table: nn.Module) -> Tensor:
    """Look buckets `[..., I, J]` up in an embedding `[buckets, H]`; returns `[..., H, I, J]`."""
    bias_IJH: Tensor = table(bucket_IJ)
    return bias_IJH.movedim(-1, -3)


def behind_prompt(bias: Tensor, length: int) -> Tensor:
    """Put columns of zeros in front of a bias `[.., I, J]`: a prompt's entries have no position."""
    columns = length + bias.shape[-1]
    return F.pad(bias, (length, -columns % _ALIGNMENT))[..., :columns]
