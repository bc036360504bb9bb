"""The state of step-by-step decoding.

Dimensions: B batch (one row a source), N rows of a step (the hypotheses of a source adjacent),
G prompts (B, or 1 shared by the batch), S source positions, T target positions that there is room
for, D width, H heads, K head width, L prompt length, M sources that stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.ofa.prompts import LayerPrompt, Prompts, StackAdapters


class DecoderPositions(NamedTuple):
    """What target positions contribute; the leading dimension is 1 where rows share it."""

    cross_queries_BTD: Tensor
    """Positional queries of cross-attention."""
    layer_bias: tuple[Tensor, ...]
    """`[1 or B, H, T, L + T]` for each layer, causal; L is the length of its prompt."""

    def to(self, dtype: torch.dtype) -> DecoderPositions:
        """Return the same in another floating-point type."""
        biases = tuple(bias.to(dtype) for bias in self.layer_bias)
        return DecoderPositions(self.cross_queries_BTD.to(dtype), biases)

    def first(self, count: int) -> DecoderPositions:
        """Return views of what the first `count` positions contribute."""
        left_out = self.cross_queries_BTD.shape[1] - count
        return DecoderPositions(
            self.cross_queries_BTD[:, :count],
            tuple(bias[:, :, :count, : bias.shape[-1] - left_out] for bias in self.layer_bias),
        )


@dataclass
class DecoderCache:
    """What the steps of one search share and what they leave to the next.

    Of self-attention each hypothesis has its own past, in buffers that are written in place. A
    prompt is kept once for all hypotheses of its sources, and so are the keys and values of
    cross-attention.
    """

    rows_per_source: int
    cross: list[tuple[Tensor, Tensor]]
    """Keys and values `[B, H, S, K]` for each layer."""
    cross_mask: Tensor
    """`[B, 1, 1, S]`, `-inf` at padding."""
    cross_keys_SD: Tensor
    """Positional keys of cross-attention."""
    prompts: list[LayerPrompt | None]
    """Keys and values `[G, H, L, K]` for each layer."""
    prompt_mask: Tensor | None
    """`[G, 1, 1, L]`, `-inf` at filler; None where there is none."""
    keys: list[Tensor]
    """`[N, H, T, K]` for each layer; the first `length` positions are written."""
    values: list[Tensor]
    length: int = 0
    """Tokens decoded so far."""
    adapters: StackAdapters | None = None
    positions: DecoderPositions | None = None
    """Of T positions without prompts."""
    cross_bias_1HTS: Tensor | None = None

    @property
    def room(self) -> int:
        """Tokens that there are buffers and biases for."""
        return self.keys[0].shape[2]

    def grow(self, positions: DecoderPositions, cross_bias_1HTS: Tensor) -> None:
        """Make room for as many tokens as there are positions."""
        added = cross_bias_1HTS.shape[2] - self.room
        self.keys = [F.pad(key, (0, 0, 0, added)) for key in self.keys]
        self.values = [F.pad(value, (0, 0, 0, added)) for value in self.values]
        self.positions, self.cross_bias_1HTS = positions, cross_bias_1HTS

    def append(self, index: int, key_NH1K: Tensor, value_NH1K: Tensor) -> tuple[Tensor, Tensor]:
        """Write one position of a layer; returns all that are written, `[N, H, length + 1, K]`."""
        end = self.length + 1
        self.keys[index][:, :, self.length : end] = key_NH1K
        self.values[index][:, :, self.length : end] = value_NH1K
        return self.keys[index][:, :, :end], self.values[index][:, :, :end]

    def reorder(self, rows_N: Tensor) -> None:
        """Let row i continue row `rows_N[i]`, in place; rows must stay with their source."""
        for buffer in (*self.keys, *self.values):
            written = buffer[:, :, : self.length]
            written.copy_(written.index_select(0, rows_N))

    def keep_sources(self, sources_M: Tensor) -> None:
        """Keep only the given sources `[M]` with all their rows."""
        offsets = torch.arange(self.rows_per_source, device=sources_M.device)
        rows = (sources_M[:, None] * self.rows_per_source + offsets).flatten()
        self.keys = [key.index_select(0, rows) for key in self.keys]
        self.values = [value.index_select(0, rows) for value in self.values]
        self.cross = [
            (key.index_select(0, sources_M), value.index_select(0, sources_M))
            for key, value in self.cross
        ]
        self.cross_mask = self.cross_mask.index_select(0, sources_M)
        self.prompts = [
            None if p is None else LayerPrompt(_pick(p.key, sources_M), _pick(p.value, sources_M))
            for p in self.prompts
        ]
        if self.prompt_mask is not None:
            self.prompt_mask = _pick(self.prompt_mask, sources_M)


def new_cache(
    cross: list[tuple[Tensor, Tensor]],
    cross_mask: Tensor,
    cross_keys_SD: Tensor,
    prompts: Prompts | None,
    rows_per_source: int,
) -> DecoderCache:
    """Begin decoding: nothing is written yet, and there is no room until `grow`."""
    key_BHSK = cross[0][0]
    stack = prompts.decoder if prompts is not None else None
    visible_BL = prompts.decoder_visible_BL if prompts is not None else None
    prompt_mask = None
    if stack is not None and visible_BL is not None:
        hidden_BL = torch.zeros_like(visible_BL, dtype=key_BHSK.dtype)
        prompt_mask = hidden_BL.masked_fill(~visible_BL, float("-inf"))[:, None, None]
    own: list[LayerPrompt | None] = []
    for prompt in stack if stack is not None else (None,) * len(cross):
        if prompt is None:
            own.append(None)
            continue
        groups = max(len(prompt.key), 1 if prompt_mask is None else len(prompt_mask))
        key, value = (x.to(key_BHSK.dtype).expand(groups, -1, -1, -1) for x in prompt)
        own.append(LayerPrompt(key, value))
    rows = len(key_BHSK) * rows_per_source
    nothing = key_BHSK.new_zeros(rows, key_BHSK.shape[1], 0, key_BHSK.shape[3])
    return DecoderCache(
        rows_per_source=rows_per_source,
        cross=cross,
        cross_mask=cross_mask,
        cross_keys_SD=cross_keys_SD,
        prompts=own,
        prompt_mask=prompt_mask,
        keys=[nothing] * len(cross),
        values=[nothing] * len(cross),
        adapters=prompts.decoder_adapters if prompts is not None else None,
    )


def _pick(shared: Tensor, sources_M: Tensor) -> Tensor:
    """Select rows of what has one for each source, or leave what all sources share."""
    return shared if len(shared) == 1 else shared.index_select(0, sources_M)
