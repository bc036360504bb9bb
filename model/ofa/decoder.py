"""The decoder: teacher-forced in one pass, or a token at a time with a cache.

Dimensions: B batch (one row a source), N rows of a step (beams of one source adjacent), R rows a
source, S source positions, T target positions, D width, H heads, K head width, L prompt length,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.ofa.attention import Attention, prepend, widen_bias
from model.ofa.config import OFAConfig
from model.ofa.encoder import EncoderOutput
from model.ofa.positions import absolute_bias, image_buckets, relative_bias, token_buckets
from model.ofa.prompts import LayerAdapter, LayerPrompt, Prompts, StackAdapters
from model.ofa.recompute import run_layer
from model.ofa.regularisation import Regularisation


class DecoderPositions(NamedTuple):
    """What target positions contribute; the leading dimension is 1 where rows share it."""

    embeddings_BTD: Tensor
    layer_bias: tuple[Tensor, ...]
    """`[1 or B, H, T, T]` for each layer, causal."""


@dataclass
class DecoderCache:
    """State of step-by-step decoding.

    Self-attention keys and values have one row for each hypothesis and start with the prompt.
    Cross-attention keys and values have one row for each source, however many hypotheses it has.
    """

    rows_per_source: int
    cross: list[tuple[Tensor, Tensor]]
    """Keys and values `[B, H, S, K]` for each layer."""
    cross_mask: Tensor
    """`[B, 1, 1, S]`, `-inf` at padding."""
    encoder_positions_SD: Tensor
    self_keys: list[Tensor]
    """`[N, H, L + length, K]` for each layer."""
    self_values: list[Tensor]
    prompt_lengths: list[int]
    prompt_mask: Tensor | None
    """`[N, L]` True where a prompt entry is real; None where all are."""
    length: int = 0
    """Tokens decoded so far."""
    adapters: StackAdapters | None = None
    bias_cache: dict[int, tuple[DecoderPositions, Tensor]] = field(default_factory=dict)

    def reorder(self, rows_N: Tensor) -> None:
        """Let row i continue row `rows_N[i]`; rows must stay with their source."""
        self.self_keys = [key.index_select(0, rows_N) for key in self.self_keys]
        self.self_values = [value.index_select(0, rows_N) for value in self.self_values]
        if self.prompt_mask is not None:
            self.prompt_mask = self.prompt_mask.index_select(0, rows_N)

    def keep_sources(self, sources_M: Tensor) -> None:
        """Keep only the given sources `[M]` with all their rows."""
        offsets = torch.arange(self.rows_per_source, device=sources_M.device)
        self.reorder((sources_M[:, None] * self.rows_per_source + offsets).flatten())
        self.cross = [
            (key.index_select(0, sources_M), value.index_select(0, sources_M))
            for key, value in self.cross
        ]
        self.cross_mask = self.cross_mask.index_select(0, sources_M)


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
        self_bias: Tensor,
        cross_bias: Tensor,
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
        self, x_N1D: Tensor, cache: DecoderCache, index: int, self_bias: Tensor, cross_bias: Tensor
    ) -> Tensor:
        """Map one token a row `[N, 1, D]`; its key and value go to layer `index` of the cache."""
        normed_N1D = self.self_attn_layer_norm(x_N1D)
        key, value = self.self_attn.project_source(normed_N1D)
        cache.self_keys[index] = torch.cat([cache.self_keys[index], key], dim=2)
        cache.self_values[index] = torch.cat([cache.self_values[index], value], dim=2)
        y_N1D = self.self_attn.attend(
            normed_N1D, cache.self_keys[index], cache.self_values[index], self_bias
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

    def positions(self, length: int, code_mask_B: Tensor | None = None) -> DecoderPositions:
        """Compute what `length` target positions contribute.

        Args:
            length: target positions, T.
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
        return DecoderPositions(embeddings_BTD, tuple(shared + r + causal for r in relative))

    def cross_bias(self, embeddings_BTD: Tensor, encoder_positions_SD: Tensor) -> Tensor:
        """Return the positional bias of cross-attention, `[1 or B, H, T, S]`."""
        return absolute_bias(
            self.cross_pos_q_linear(embeddings_BTD),
            self.cross_pos_k_linear(encoder_positions_SD),
            self.config.attention_heads,
            self.config.attention_scale,
        )

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
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the layers on a whole embedded target.

        Returns:
            the features after the final LayerNorm `[B, T, D]`, and the input of each layer with the
            output of the last.
        """
        cross_bias = self.cross_bias(positions.embeddings_BTD, source.positions_ND)
        cross_bias = cross_bias + source_mask(source.padding_BN, cross_bias.dtype)
        stack = prompts.decoder if prompts is not None else None
        visible_BL = prompts.decoder_visible_BL if prompts is not None else None
        adapters = prompts.decoder_adapters if prompts is not None else None
        recompute = self.recompute and self.training
        kept = []
        for index, layer in enumerate(self.layers):
            kept.append(x_BTD)
            prompt = stack[index] if stack is not None else None
            self_bias = widen_bias(positions.layer_bias[index], prompt, visible_BL)
            adapter = adapters[index] if adapters is not None else None
            inputs = (x_BTD, source.hidden_BND, self_bias, cross_bias, prompt, adapter)
            x_BTD = run_layer(layer, *inputs, recompute=recompute)
        kept.append(x_BTD)
        return self.layer_norm(x_BTD), tuple(kept)

    def start_cache(
        self, source: EncoderOutput, prompts: Prompts | None, rows_per_source: int
    ) -> DecoderCache:
        """Project the source once a layer and put the prompts in front of self-attention."""
        stack = prompts.decoder if prompts is not None else None
        visible_BL = prompts.decoder_visible_BL if prompts is not None else None
        sources = source.hidden_BND.shape[0]
        cross = [
            layer.encoder_attn.project_source(source.hidden_BND) for layer in self._typed_layers()
        ]
        keys, values, lengths = [], [], []
        for index, (cross_key, _) in enumerate(cross):
            empty = cross_key[:, :, :0]
            prompt = stack[index] if stack is not None else None
            key, value = (empty, empty) if prompt is None else prepend(prompt, empty, empty)
            keys.append(key.repeat_interleave(rows_per_source, dim=0))
            values.append(value.repeat_interleave(rows_per_source, dim=0))
            lengths.append(key.shape[2])
        prompt_mask = None
        if visible_BL is not None:
            prompt_mask = visible_BL.expand(sources, -1).repeat_interleave(rows_per_source, dim=0)
        return DecoderCache(
            rows_per_source=rows_per_source,
            cross=cross,
            cross_mask=source_mask(source.padding_BN, source.hidden_BND.dtype),
            encoder_positions_SD=source.positions_ND,
            self_keys=keys,
            self_values=values,
            prompt_lengths=lengths,
            prompt_mask=prompt_mask,
            adapters=prompts.decoder_adapters if prompts is not None else None,
        )

    def step(self, ids_N: Tensor, cache: DecoderCache) -> Tensor:
        """Decode one token for each row; returns its features `[N, D]` and extends the cache."""
        positions, cross_bias = self._step_positions(cache)
        t = cache.length
        cross_row = cross_bias[:, :, t : t + 1] + cache.cross_mask
        x_N1D = self.embed(ids_N[:, None])
        for index, layer in enumerate(self._typed_layers()):
            self_row = positions.layer_bias[index][:, :, t : t + 1, : t + 1]
            self_row = self._widen_row(self_row, cache, index)
            x_N1D = layer.step(x_N1D, cache, index, self_row, cross_row)
        cache.length += 1
        features_N1D: Tensor = self.layer_norm(x_N1D)
        return features_N1D[:, 0]

    def _typed_layers(self) -> Iterable[DecoderLayer]:
        return cast(Iterable[DecoderLayer], self.layers)

    def _widen_row(self, row: Tensor, cache: DecoderCache, index: int) -> Tensor:
        row = F.pad(row, (cache.prompt_lengths[index], 0))
        if cache.prompt_mask is None or cache.prompt_lengths[index] == 0:
            return row
        hidden_NL = torch.zeros_like(cache.prompt_mask, dtype=row.dtype)
        hidden_NL = hidden_NL.masked_fill(~cache.prompt_mask, float("-inf"))
        return row + F.pad(hidden_NL, (0, cache.length + 1))[:, None, None]

    def _step_positions(self, cache: DecoderCache) -> tuple[DecoderPositions, Tensor]:
        """Return the biases for a block of steps, computed once a block and not once a step."""
        block = 32
        length = min((cache.length // block + 1) * block, self.config.max_positions)
        if length not in cache.bias_cache:
            positions = self.positions(length)
            cross = self.cross_bias(positions.embeddings_BTD, cache.encoder_positions_SD)
            cache.bias_cache = {length: (positions, cross)}
        return cache.bias_cache[length]


def source_mask(padding_BS: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `[B, 1, 1, S]` with `-inf` at padding."""
    mask_BS = torch.zeros_like(padding_BS, dtype=dtype).masked_fill(padding_BS, float("-inf"))
    return mask_BS[:, None, None]
