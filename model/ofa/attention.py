"""Multi-head attention with an additive bias, prompts in front, and scaled heads.

Dimensions: B batch, S key positions, T query positions, H heads, K head width, D = H * K,
L prompt length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.ofa.prompts import LayerPrompt


class Attention(nn.Module):
    """The attention of one layer.

    The caller passes one additive bias that already holds positions and masks, so that what is
    shared by the batch is never copied for each row.
    """

    def __init__(self, d_model: int, heads: int, scale: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = scale
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self.c_attn = nn.Parameter(torch.ones(heads))

    def forward(
        self, query_BTD: Tensor, source_BSD: Tensor, bias: Tensor, prompt: LayerPrompt | None = None
    ) -> Tensor:
        """Attend from `query_BTD` to the prompt and `source_BSD`.

        Args:
            query_BTD: normalised queries.
            source_BSD: what keys and values are projected from.
            bias: broadcastable to `[B, H, T, L + S]`; `-inf` where a key must not be seen.
            prompt: keys and values put in front of the projected ones; L is 0 without.

        Returns:
            `[B, T, D]`.
        """
        key_BHSK, value_BHSK = self.project_source(source_BSD)
        if prompt is not None:
            key_BHSK, value_BHSK = prepend(prompt, key_BHSK, value_BHSK)
        return self.attend(query_BTD, key_BHSK, value_BHSK, bias)

    def project_source(self, source_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values `[B, H, S, K]` of a source."""
        return self._split(self.k_proj(source_BSD)), self._split(self.v_proj(source_BSD))

    def attend(
        self, query_BTD: Tensor, key_BHSK: Tensor, value_BHSK: Tensor, bias: Tensor
    ) -> Tensor:
        """Attend to keys and values that are already projected; returns `[B, T, D]`."""
        query_BHTK = self._split(self.q_proj(query_BTD))
        mask = bias.to(query_BHTK.dtype)
        out_BHTK = F.scaled_dot_product_attention(
            query_BHTK, key_BHSK, value_BHSK, attn_mask=mask, scale=self.scale
        )
        out_BHTK = out_BHTK * self.c_attn.to(out_BHTK.dtype).view(1, -1, 1, 1)
        projected_BTD: Tensor = self.out_proj(out_BHTK.transpose(1, 2).flatten(2))
        return projected_BTD

    def _split(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.reshape(*x_BTD.shape[:-1], self.heads, -1).transpose(1, 2)


def prepend(prompt: LayerPrompt, key_BHSK: Tensor, value_BHSK: Tensor) -> tuple[Tensor, Tensor]:
    """Put a prompt in front of keys and values: `[B, H, S, K]` becomes `[B, H, L + S, K]`."""
    batch = key_BHSK.shape[0]
    prompt_key = prompt.key.to(key_BHSK.dtype).expand(batch, -1, -1, -1)
    prompt_value = prompt.value.to(value_BHSK.dtype).expand(batch, -1, -1, -1)
    return torch.cat([prompt_key, key_BHSK], dim=2), torch.cat([prompt_value, value_BHSK], dim=2)


def widen_bias(bias: Tensor, prompt: LayerPrompt | None, visible_BL: Tensor | None) -> Tensor:
    """Extend a bias `[B or 1, H, T, S]` to `[.., L + S]`: prompts carry no position, hence zeros.

    `visible_BL` is False at filler entries of a prompt, which then get `-inf`.
    """
    if prompt is None:
        return bias
    length = prompt.key.shape[2]
    if visible_BL is None:
        return F.pad(bias, (length, 0))
    hidden_B11L = torch.zeros_like(visible_BL, dtype=bias.dtype).masked_fill(
        ~visible_BL, float("-inf")
    )
    batch = max(bias.shape[0], visible_BL.shape[0])
    hidden = hidden_B11L[:, None, None].expand(batch, bias.shape[1], bias.shape[2], -1)
    return torch.cat([hidden, bias.expand(batch, -1, -1, -1)], dim=-1)
