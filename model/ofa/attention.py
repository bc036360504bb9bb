"""Multi-head attention with an additive bias, prompts in front, and scaled heads.

Dimensions: B batch, S key positions, T query positions, H heads, K head width, D = H * K,
L prompt length, M = L + S; in a decoding step N rows, in G groups of R rows with one prompt each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.ofa.bias import Bias, attention
from model.ofa.prompts import LayerPrompt


class Attention(nn.Module):
    """The attention of one layer.

    The caller passes one bias for positions and masks, made so that what is shared by the batch is
    never copied for each row.
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
        self, query_BTD: Tensor, source_BSD: Tensor, bias: Bias, prompt: LayerPrompt | None = None
    ) -> Tensor:
        """Attend from `query_BTD` to the prompt and `source_BSD`.

        Args:
            query_BTD: normalised queries.
            source_BSD: what keys and values are projected from.
            bias: of the `L + S` keys.
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

    def attend(self, query_BTD: Tensor, key_BHSK: Tensor, value_BHSK: Tensor, bias: Bias) -> Tensor:
        """Attend to keys and values that are already projected; returns `[B, T, D]`."""
        query_BHTK = self._split(self.q_proj(query_BTD))
        return self._join(attention(query_BHTK, key_BHSK, value_BHSK, bias, self.scale))

    def attend_step(
        self,
        query_N1D: Tensor,
        key_NHSK: Tensor,
        value_NHSK: Tensor,
        bias_1H1S: Tensor,
        prompt: LayerPrompt | None,
        prompt_mask_G11L: Tensor | None,
    ) -> Tensor:
        """Attend from one position of each row to its own past and to a prompt.

        Args:
            query_N1D: normalised queries, the rows of a prompt adjacent.
            key_NHSK: keys of each row's own past.
            value_NHSK: values of each row's own past.
            bias_1H1S: what positions add to the row's own past.
            prompt: one for every N / G rows, which is not copied for each of them.
            prompt_mask_G11L: `-inf` at filler of prompts.

        Returns:
            `[N, 1, D]`.
        """
        query_NH1K = self._split(self.q_proj(query_N1D)) * self.scale
        scores_NH1M = query_NH1K @ key_NHSK.transpose(2, 3) + bias_1H1S
        if prompt is None:
            weights_NH1S = torch.softmax(scores_NH1M, dim=-1, dtype=torch.float32)
            return self._join((weights_NH1S.to(value_NHSK.dtype) @ value_NHSK).transpose(1, 2))
        groups, length = prompt.key.shape[0], prompt.key.shape[2]
        query_GHRK = query_NH1K.view(groups, -1, *query_NH1K.shape[1::2]).transpose(1, 2)
        prompt_GHRL = query_GHRK @ prompt.key.transpose(2, 3)
        if prompt_mask_G11L is not None:
            prompt_GHRL = prompt_GHRL + prompt_mask_G11L
        prompt_NH1L = prompt_GHRL.transpose(1, 2).flatten(0, 1)[:, :, None]
        weights_NH1M = torch.softmax(
            torch.cat([prompt_NH1L, scores_NH1M], dim=-1), dim=-1, dtype=torch.float32
        ).to(value_NHSK.dtype)
        of_prompt_NH1L, of_past_NH1S = weights_NH1M.split(
            [length, weights_NH1M.shape[-1] - length], dim=-1
        )
        of_prompt_GHRL = of_prompt_NH1L.view(groups, -1, *of_prompt_NH1L.shape[1::2])
        out_GRHK = (of_prompt_GHRL.transpose(1, 2) @ prompt.value).transpose(1, 2)
        out_N1HK = (of_past_NH1S @ value_NHSK).transpose(1, 2)
        return self._join(out_N1HK + out_GRHK.flatten(0, 1)[:, None])

    def _join(self, out_BTHK: Tensor) -> Tensor:
        """Weigh the heads and project them back to `[B, T, D]`."""
        weighed_BTHK = out_BTHK * self.c_attn.to(out_BTHK.dtype)[:, None]
        projected_BTD: Tensor = self.out_proj(weighed_BTHK.flatten(2))
        return projected_BTD

    def _split(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.reshape(*x_BTD.shape[:-1], self.heads, -1).transpose(1, 2)


def prepend(prompt: LayerPrompt, key_BHSK: Tensor, value_BHSK: Tensor) -> tuple[Tensor, Tensor]:
    """Put a prompt in front of keys and values: `[B, H, S, K]` becomes `[B, H, L + S, K]`."""
    batch = key_BHSK.shape[0]
    prompt_key = prompt.key.to(key_BHSK.dtype).expand(batch, -1, -1, -1)
    prompt_value = prompt.value.to(value_BHSK.dtype).expand(batch, -1, -1, -1)
    return torch.cat([prompt_key, key_BHSK], dim=2), torch.cat([prompt_value, value_BHSK], dim=2)
