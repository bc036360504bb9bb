"""The decoder: teacher-forced in one pass, or a token at a time with a cache.

Dimensions: B batch (one row a source), N rows of a step (beams of one source adjacent), R rows a
source, S source positions, T target positions, D width, H heads, K head width, L prompt length,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.ofa.attention import Attention
from model.ofa.bias import Bias, HiddenKeys
from model.ofa.cache import DecoderCache, DecoderPositions, new_cache
from model.ofa.config import OFAConfig
from model.ofa.encoder import EncoderOutput
from model.ofa.positions import (
    absolute_bias,
    behind_prompt,
    image_buckets,
    relative_bias,
    token_buckets,
)
from model.ofa.prompts import LayerAdapter, LayerPrompt, Prompts
from model.ofa.recompute import run_layer
from model.ofa.regularisation import Regularisation


class DecoderLayer(nn.Module):
    """Pre-norm self-attention, cross-attention, feed-forward; a LayerNorm in each branch."""

    def __init__(self, config: OFAConfig, regularisation: Regularisation) -> None:
        super().__init__()
        width, heads, scale = config.d_model, config.attention_heads, config.attention_scale
        self.regularisation = regularisation
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn = Attention(width, heads, scale)
        self.self_attn_ln = nn.LayerNorm(width)
        self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.encoder_attn = Attention(width, heads, scale)
        self.cross_attn_ln = nn.LayerNorm(width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.ffn_dim)
        self.ffn_layernorm = nn.LayerNorm(config.ffn_dim)
        self.fc2 = nn.Linear(config.ffn_dim, width)

    def forward(
        self,
        x_BTD: Tensor,
        source_BSD: Tensor,
        self_bias: Bias,
        cross_bias: Bias,
        prompt: LayerPrompt | None,
        adapter: LayerAdapter | None = None,
    ) -> Tensor:
        """Map `[B, T, D]` to `[B, T, D]` for a whole target at once."""
        normed_BTD = self.self_attn_layer_norm(x_BTD)
        y_BTD = self.self_attn(normed_BTD, normed_BTD, self_bias, prompt)
        x_BTD = x_BTD + self.regularisation.branch(self.self_attn_ln(y_BTD), self.training)
        y_BTD = self.encoder_attn(self.encoder_attn_layer_norm(x_BTD), source_BSD, cross_bias)
        x_BTD = x_BTD + self.regularisation.branch(self.cross_attn_ln(y_BTD), self.training)
        return self._feed_forward(x_BTD, adapter)

    def step(
        self,
        x_N1D: Tensor,
        cache: DecoderCache,
        index: int,
        self_bias_1H1S: Tensor,
        cross_bias: Bias,
    ) -> Tensor:
        """Map one token a row `[N, 1, D]`; its key and value go to layer `index` of the cache."""
        normed_N1D = self.self_attn_layer_norm(x_N1D)
        keys, values = cache.append(index, *self.self_attn.project_source(normed_N1D))
        y_N1D = self.self_attn.attend_step(
            normed_N1D, keys, values, self_bias_1H1S, cache.prompts[index], cache.prompt_mask
        )
        x_N1D = x_N1D + self.self_attn_ln(y_N1D)
        # The hypotheses of a source become queries of one attention, so that its keys are shared.
        query_BRD = self.encoder_attn_layer_norm(x_N1D).view(
            -1, cache.rows_per_source, x_N1D.shape[-1]
        )
        y_BRD = self.encoder_attn.attend(query_BRD, *cache.cross[index], cross_bias)
        adapter = cache.adapters[index] if cache.adapters is not None else None
        return self._feed_forward(x_N1D + self.cross_attn_ln(y_BRD).view_as(x_N1D), adapter)

    def _feed_forward(self, x_BTD: Tensor, adapter: LayerAdapter | None) -> Tensor:
        y_BTD = self.ffn_layernorm(F.gelu(self.fc1(self.final_layer_norm(x_BTD))))
        return x_BTD + self.regularisation.branch(self.fc2(y_BTD), self.training, adapter)


class Decoder(nn.Module):
    """Writes text, location bins and image codes."""

    def __init__(
        self, config: OFAConfig, embed_tokens: nn.Embedding, regularisation: Regularisation
    ) -> None:
        super().__init__()
        width, heads = config.d_model, config.attention_heads
        self.config = config
        self.regularisation = regularisation
        self.recompute = False
        self.embed_tokens = embed_tokens
        self.layernorm_embedding = nn.LayerNorm(width)
        self.code_layernorm_embedding = nn.LayerNorm(width)
        self.embed_positions = nn.Embedding(config.position_rows, width)
        self.embed_image_positions = nn.Embedding(config.image_position_rows, width)
        self.pos_ln = nn.LayerNorm(width)
        self.image_pos_ln = nn.LayerNorm(width)
        self.self_pos_q_linear = nn.Linear(width, width)
        self.self_pos_k_linear = nn.Linear(width, width)
        self.cross_pos_q_linear = nn.Linear(width, width)
        self.cross_pos_k_linear = nn.Linear(width, width)
        depth = range(config.decoder_layers)
        self.token_rel_pos_table_list = nn.ModuleList(
            nn.Embedding(config.token_buckets, heads) for _ in depth
        )
        self.image_rel_pos_table_list = nn.ModuleList(
            nn.Embedding(config.image_buckets, heads) for _ in depth
        )
        self.layers = nn.ModuleList(DecoderLayer(config, regularisation) for _ in depth)
        self.layer_norm = nn.LayerNorm(width)

    def code_position_ids(self, length: int, device: torch.device) -> Tensor:
        """Return the image position id `[length]` of each position of an image-code target."""
        grid, bucket = self.config.code_grid_size, self.config.image_bucket_size
        step_T = torch.arange(length, device=device)
        place_T = (step_T - 1) // grid * bucket + (step_T - 1) % grid + 1
        filler = self.config.max_positions
        return torch.where(step_T == 0, 0, torch.where(step_T <= grid * grid, place_T, filler))

    def positions(
        self,
        length: int,
        prompt_lengths: tuple[int, ...],
        code_mask_B: Tensor | None = None,
    ) -> DecoderPositions:
        """Compute what `length` target positions contribute.

        Args:
            length: target positions, T.
            prompt_lengths: prompt entries in front of each layer's keys.
            code_mask_B: True for samples whose target is image codes, which lie on a grid.

        Raises:
            ValueError: the target is longer than the position table.
        """
        if length > self.config.max_positions:
            raise ValueError(f"{length} target tokens exceed {self.config.max_positions}")
        device = self.embed_positions.weight.device
        step_T = torch.arange(length, device=device)
        embeddings_BTD = self.pos_ln(self.embed_positions(step_T))[None]
        token_TT = token_buckets(
            step_T,
            step_T,
            bucket_size=self.config.token_bucket_size,
            max_positions=self.config.max_positions,
        )
        relative = [relative_bias(token_TT, t)[None] for t in self.token_rel_pos_table_list]
        if code_mask_B is not None:
            ids_T = self.code_position_ids(length, device)
            code_BTD = self.image_pos_ln(self.embed_image_positions(ids_T))[None]
            embeddings_BTD = torch.where(code_mask_B[:, None, None], code_BTD, embeddings_BTD)
            code_TT = image_buckets(ids_T, ids_T, bucket_size=self.config.image_bucket_size)
            relative = [
                torch.where(code_mask_B[:, None, None, None], relative_bias(code_TT, t)[None], r)
                for t, r in zip(self.image_rel_pos_table_list, relative, strict=True)
            ]
        shared = absolute_bias(
            self.self_pos_q_linear(embeddings_BTD),
            self.self_pos_k_linear(embeddings_BTD),
            self.config.attention_heads,
            self.config.attention_scale,
        )
        future_TT = step_T[None, :] > step_T[:, None]
        causal = torch.zeros_like(future_TT, dtype=shared.dtype).masked_fill(
            future_TT, float("-inf")
        )
        biases = zip(relative, prompt_lengths, strict=True)
        return DecoderPositions(
            self.cross_pos_q_linear(embeddings_BTD),
            tuple(behind_prompt(shared + r + causal, length) for r, length in biases),
        )

    def cross_bias(self, cross_queries_BTD: Tensor, cross_keys_SD: Tensor) -> Tensor:
        """Return the positional bias of cross-attention, `[1 or B, H, T, S]`."""
        heads, scale = self.config.attention_heads, self.config.attention_scale
        return absolute_bias(cross_queries_BTD, cross_keys_SD, heads, scale)

    def embed(self, ids_BT: Tensor, code_mask_B: Tensor | None = None) -> Tensor:
        """Return the input `[B, T, D]` of the first layer."""
        tokens_BTD = self.embed_tokens(ids_BT)
        x_BTD: Tensor = self.layernorm_embedding(tokens_BTD)
        if code_mask_B is not None:
            codes_BTD = self.code_layernorm_embedding(tokens_BTD)
            x_BTD = torch.where(code_mask_B[:, None, None], codes_BTD, x_BTD)
        return self.regularisation.embedding(x_BTD, self.training)

    def forward(
        self,
        x_BTD: Tensor,
        source: EncoderOutput,
        positions: DecoderPositions,
        prompts: Prompts | None,
        share_bias: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the layers on a whole embedded target.

        Args:
            x_BTD: what `embed` returned.
            source: what the encoder made of the source.
            positions: for this length and these prompts.
            prompts: the prompts of both stacks.
            share_bias: never copy a layer's bias for each sample.

        Returns:
            the features after the final LayerNorm `[B, T, D]`, and the input of each layer with the
            output of the last.
        """
        # A target is short: with its padding this bias is small, and all layers share it.
        cross_values = self.cross_bias(positions.cross_queries_BTD, source.cross_keys_ND)
        cross_bias = Bias(cross_values + source_mask(source.padding_BN, cross_values.dtype))
        stack = prompts.decoder if prompts is not None else None
        visible_BL = prompts.decoder_visible_BL if prompts is not None else None
        adapters = prompts.decoder_adapters if prompts is not None else None
        recompute = self.recompute and self.training
        hidden = HiddenKeys(None, visible_BL, shared=share_bias)
        kept = []
        for index, layer in enumerate(self.layers):
            kept.append(x_BTD)
            prompt = stack[index] if stack is not None else None
            length = 0 if prompt is None else prompt.key.shape[2]
            self_bias = hidden.join(positions.layer_bias[index], length)
            adapter = adapters[index] if adapters is not None else None
            inputs = (x_BTD, source.hidden_BND, self_bias, cross_bias, prompt, adapter)
            x_BTD = run_layer(layer, *inputs, recompute=recompute)
        kept.append(x_BTD)
        return self.layer_norm(x_BTD), tuple(kept)

    def start_cache(
        self, source: EncoderOutput, prompts: Prompts | None, rows_per_source: int
    ) -> DecoderCache:
        """Project the source once a layer, however many hypotheses it will have."""
        return new_cache(
            [
                layer.encoder_attn.project_source(source.hidden_BND)
                for layer in self._typed_layers()
            ],
            source_mask(source.padding_BN, source.hidden_BND.dtype),
            source.cross_keys_ND,
            prompts,
            rows_per_source,
        )

    def step(self, ids_N: Tensor, cache: DecoderCache) -> Tensor:
        """Decode one token for each row; returns its features `[N, D]` and extends the cache."""
        assert cache.positions is not None
        assert cache.cross_bias_1HTS is not None
        t = cache.length
        cross_bias = Bias(cache.cross_bias_1HTS[:, :, t : t + 1] + cache.cross_mask)
        x_N1D = self.embed(ids_N[:, None])
        for index, layer in enumerate(self._typed_layers()):
            self_bias_1H1S = cache.positions.layer_bias[index][:, :, t : t + 1, : t + 1]
            x_N1D = layer.step(x_N1D, cache, index, self_bias_1H1S, cross_bias)
        cache.length += 1
        features_N1D: Tensor = self.layer_norm(x_N1D)
        return features_N1D[:, 0]

    def _typed_layers(self) -> Iterable[DecoderLayer]:
        return cast(Iterable[DecoderLayer], self.layers)


def source_mask(padding_BS: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `[B, 1, 1, S]` with `-inf` at padding."""
    mask_BS = torch.zeros_like(padding_BS, dtype=dtype).masked_fill(padding_BS, float("-inf"))
    return mask_BS[:, None, None]
