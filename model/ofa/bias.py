"""Additive biases of attention that the samples of a batch share, and the keys hidden from some.

What positions add is the same for every sample, what padding hides is not. Joined in one tensor
they would take B times the memory in every layer; so they stay apart, and a sample whose hidden
keys are the last ones simply gets fewer keys.

Dimensions: B batch, H heads, T query positions, M keys (a prompt of L entries, then S positions),
K head width, G neighbours in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class KeyMask:
    """Which keys each sample must not see; at least one sample has such keys."""

    hidden_BM: Tensor
    """True where a key is hidden."""
    leading: tuple[int | None, ...]
    """For each sample the number of keys it sees if these are the first ones, otherwise None."""

    @classmethod
    def of(cls, hidden_BM: Tensor) -> KeyMask | None:
        """Return the mask of hidden keys, None where nothing is hidden."""
        seen_B = (~hidden_BM).sum(dim=1)
        place_M = torch.arange(hidden_BM.shape[1], device=hidden_BM.device)
        gap_B = (hidden_BM & (place_M < seen_B[:, None])).any(dim=1)
        counts, gaps = torch.stack([seen_B, gap_B.long()]).tolist()
        if min(counts) == hidden_BM.shape[1]:
            return None
        return cls(
            hidden_BM, tuple(None if gap else n for n, gap in zip(counts, gaps, strict=True))
        )


class Bias(NamedTuple):
    """What is added to the scores of one attention."""

    values: Tensor
    """Broadcastable to `[B, H, T, M]`; `-inf` where a key must not be seen."""
    mask: KeyMask | None = None
    """Keys hidden beside those; None for none."""


class HiddenKeys:
    """The hidden keys of a stack, found once for all layers of a pass."""

    def __init__(
        self, padding_BS: Tensor | None, visible_BL: Tensor | None, *, shared: bool
    ) -> None:
        """Takes what is hidden.

        Args:
            padding_BS: True at keys that are padding; None hides none.
            visible_BL: False at the filler of prompts (`[1 or B, L]`); None hides none.
            shared: whether biases stay shared by the batch.
        """
        self._padding_BS, self._visible_BL, self._shared = padding_BS, visible_BL, shared
        self._masks: dict[int, KeyMask | None] = {}

    def join(self, values_1HTM: Tensor, prompt_length: int) -> Bias:
        """Return the bias of a layer from that of its positions, prompt in front."""
        if not self._shared:
            hidden_BM = self._hidden(values_1HTM, prompt_length)
            row_BM = torch.zeros_like(hidden_BM, dtype=values_1HTM.dtype)
            row_BM = row_BM.masked_fill(hidden_BM, float("-inf"))
            return Bias(values_1HTM + row_BM[:, None, None])
        if self._padding_BS is None and (self._visible_BL is None or prompt_length == 0):
            return Bias(values_1HTM)
        if prompt_length not in self._masks:
            self._masks[prompt_length] = KeyMask.of(self._hidden(values_1HTM, prompt_length))
        return Bias(values_1HTM, self._masks[prompt_length])

    def _hidden(self, values_1HTM: Tensor, length: int) -> Tensor:
        """Return `[1 or B, M]`, True where a key is hidden."""
        padding_BS, visible_BL = self._padding_BS, self._visible_BL
        if padding_BS is None:
            padding_BS = values_1HTM.new_zeros(1, values_1HTM.shape[-1] - length, dtype=torch.bool)
        if visible_BL is None or length == 0:
            return F.pad(padding_BS, (length, 0))
        batch = max(len(padding_BS), len(visible_BL))
        return torch.cat([~visible_BL.expand(batch, -1), padding_BS.expand(batch, -1)], dim=1)


def attention(
    query_BHTK: Tensor, key_BHMK: Tensor, value_BHMK: Tensor, bias: Bias, scale: float
) -> Tensor:
    """Return softmax(query key^T scale + bias) value as `[B, T, H, K]`, heads after positions."""
    values, mask = bias
    if mask is not None and torch.compiler.is_compiling():
        # Lengths of samples would be constants of the compiled code, compiled again for each.
        hidden_B11M = mask.hidden_BM[:, None, None]
        values, mask = values.masked_fill(hidden_B11M, float("-inf")), None
    if mask is None:
        return _attend(query_BHTK, key_BHMK, value_BHMK, values, scale)
    outputs = []
    runs = [(leading, len(list(rows))) for leading, rows in groupby(mask.leading)]
    if len(runs) == 1 and len(mask.leading) == 1:
        runs = [(mask.leading[0], len(query_BHTK))]
    sizes = [size for _, size in runs]
    # split and not slices of the batch: its gradient is one concatenation.
    parts = zip(
        runs,
        [values] * len(runs) if len(values) == 1 else values.split(sizes),
        query_BHTK.split(sizes),
        key_BHMK.split(sizes),
        value_BHMK.split(sizes),
        mask.hidden_BM.expand(len(query_BHTK), -1).split(sizes),
        strict=True,
    )
    for (leading, _), own, query_GHTK, key_GHMK, value_GHMK, hidden_GM in parts:
        if leading is None:
            own = own.masked_fill(hidden_GM[:, None, None], float("-inf"))
            outputs.append(_attend(query_GHTK, key_GHMK, value_GHMK, own, scale))
        else:
            seen = slice(None, leading)
            key_GHMK, value_GHMK = key_GHMK[:, :, seen], value_GHMK[:, :, seen]
            outputs.append(_attend(query_GHTK, key_GHMK, value_GHMK, own[..., seen], scale))
    return torch.cat(outputs)


def _attend(query: Tensor, key: Tensor, value: Tensor, values: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=values.to(query.dtype), scale=scale
    ).transpose(1, 2)
