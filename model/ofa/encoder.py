"""The encoder: image features and text in one sequence, image first.

Dimensions: B batch, P image positions, S text positions, N = P + S, D width, H heads,
L prompt length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.ofa.attention import Attention
from model.ofa.bias import Bias, HiddenKeys
from model.ofa.config import OFAConfig
from model.ofa.positions import (
    absolute_bias,
    behind_prompt,
    image_buckets,
    image_position_ids,
    relative_bias,
    token_buckets,
)
from model.ofa.prompts import LayerAdapter, LayerPrompt, Prompts
from model.ofa.recompute import run_layer
from model.ofa.regularisation import Regularisation
from model.ofa.vision import ResNetTrunk


@dataclass(frozen=True)
class EncoderOutput:
    """What the decoder needs of a source."""

    hidden_BND: Tensor
    """After the final LayerNorm."""
    padding_BN: Tensor
    """True at padding: text past `</s>`, and every image position of a sample without an image."""
    positions_ND: Tensor
    """Normalised position embeddings."""
    cross_keys_ND: Tensor
    """Their projections, the positional keys of cross-attention."""
    layer_inputs: tuple[Tensor, ...] = ()
    """Input of each layer and output of the last, `[B, N, D]` each; only when asked for."""

    def select(self, rows_M: Tensor) -> EncoderOutput:
        """Return the given batch rows `[M]`."""
        return EncoderOutput(
            hidden_BND=self.hidden_BND.index_select(0, rows_M),
            padding_BN=self.padding_BN.index_select(0, rows_M),
            positions_ND=self.positions_ND,
            cross_keys_ND=self.cross_keys_ND,
        )


class EncoderPositions(NamedTuple):
    """Everything that positions contribute for one shape of input."""

    embeddings_ND: Tensor
    layer_bias: tuple[Tensor, ...]
    """`[1, H, N, L + N]` for each layer, L the length of its prompt."""

    def to(self, dtype: torch.dtype) -> EncoderPositions:
        """Return the same in another floating-point type."""
        biases = tuple(bias.to(dtype) for bias in self.layer_bias)
        return EncoderPositions(self.embeddings_ND.to(dtype), biases)

    def first(self, count: int) -> EncoderPositions:
        """Return views of what the first `count` positions contribute."""
        left_out = len(self.embeddings_ND) - count
        return EncoderPositions(
            self.embeddings_ND[:count],
            tuple(bias[:, :, :count, : bias.shape[-1] - left_out] for bias in self.layer_bias),
        )


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and feed-forward, each with a LayerNorm inside its branch."""

    def __init__(self, config: OFAConfig, regularisation: Regularisation) -> None:
        super().__init__()
        width = config.d_model
        self.regularisation = regularisation
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn = Attention(width, config.attention_heads, config.attention_scale)
        self.attn_ln = nn.LayerNorm(width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.ffn_dim)
        self.ffn_layernorm = nn.LayerNorm(config.ffn_dim)
        self.fc2 = nn.Linear(config.ffn_dim, width)

    def forward(
        self,
        x_BND: Tensor,
        bias: Bias,
        prompt: LayerPrompt | None,
        adapter: LayerAdapter | None = None,
    ) -> Tensor:
        """Map `[B, N, D]` to `[B, N, D]`; `bias` is of `L + N` keys."""
        normed_BND = self.self_attn_layer_norm(x_BND)
        y_BND = self.attn_ln(self.self_attn(normed_BND, normed_BND, bias, prompt))
        x_BND = x_BND + self.regularisation.branch(y_BND, self.training)
        y_BND = self.ffn_layernorm(F.gelu(self.fc1(self.final_layer_norm(x_BND))))
        return x_BND + self.regularisation.branch(self.fc2(y_BND), self.training, adapter)


class Encoder(nn.Module):
    """Embeds an image and a text and lets them attend to each other."""

    def __init__(
        self, config: OFAConfig, embed_tokens: nn.Embedding, regularisation: Regularisation
    ) -> None:
        super().__init__()
        width, heads = config.d_model, config.attention_heads
        self.config = config
        self.regularisation = regularisation
        self.recompute = False
        self.embed_tokens = embed_tokens
        self.embed_images = ResNetTrunk(config.resnet_blocks, config.resnet_width)
        self.image_proj = nn.Linear(config.image_channels, width)
        self.type_embedding = nn.Embedding(2, width)
        self.layernorm_embedding = nn.LayerNorm(width)
        self.patch_layernorm_embedding = nn.LayerNorm(width)
        self.embed_positions = nn.Embedding(config.position_rows, width)
        self.embed_image_positions = nn.Embedding(config.image_position_rows, width)
        self.pos_ln = nn.LayerNorm(width)
        self.image_pos_ln = nn.LayerNorm(width)
        self.pos_q_linear = nn.Linear(width, width)
        self.pos_k_linear = nn.Linear(width, width)
        depth = range(config.encoder_layers)
        self.token_rel_pos_table_list = nn.ModuleList(
            nn.Embedding(config.token_buckets, heads) for _ in depth
        )
        self.image_rel_pos_table_list = nn.ModuleList(
            nn.Embedding(config.image_buckets, heads) for _ in depth
        )
        self.layers = nn.ModuleList(EncoderLayer(config, regularisation) for _ in depth)
        self.layer_norm = nn.LayerNorm(width)

    def image_features(
        self, images_BCHW: Tensor, trunk: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, tuple[int, int]]:
        """Return a trunk's features `[B, P, channels]` and the feature map's rows and columns.

        Images of as many channels as features have are features, computed before.
        """
        computed = images_BCHW.shape[1] == self.config.image_channels
        features_BCHW = images_BCHW if computed else trunk(images_BCHW)
        rows, columns = features_BCHW.shape[-2:]
        return features_BCHW.flatten(2).transpose(1, 2), (rows, columns)

    def embed(
        self, source_ids_BS: Tensor, features_BPC: Tensor | None, image_present_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the input of the first layer `[B, N, D]` and its padding mask `[B, N]`."""
        text_BSD = self.embed_tokens(source_ids_BS) + self.type_embedding.weight[0]
        x_BND = self.regularisation.embedding(self.layernorm_embedding(text_BSD), self.training)
        padding_BN = source_ids_BS == self.config.vocab.pad
        if features_BPC is not None:
            image_BPD = self.image_proj(features_BPC) + self.type_embedding.weight[1]
            image_BPD = self.patch_layernorm_embedding(image_BPD)
            image_BPD = self.regularisation.embedding(image_BPD, self.training)
            absent_BP = torch.zeros(image_BPD.shape[:2], dtype=torch.bool, device=image_BPD.device)
            if image_present_B is not None:
                absent_BP = absent_BP | ~image_present_B[:, None]
            x_BND = torch.cat([image_BPD, x_BND], dim=1)
            padding_BN = torch.cat([absent_BP, padding_BN], dim=1)
        return x_BND * (~padding_BN)[..., None].to(x_BND.dtype), padding_BN

    def positions(
        self, grid: tuple[int, int] | None, text_length: int, prompt_lengths: tuple[int, ...]
    ) -> EncoderPositions:
        """Compute what positions contribute for a feature map of `grid` and `text_length` tokens.

        Args:
            grid: rows and columns of the feature map; None for text alone.
            text_length: tokens.
            prompt_lengths: prompt entries in front of each layer's keys.

        Raises:
            ValueError: the feature map or the text is larger than the position tables.
        """
        self._check_size(grid, text_length)
        device = self.embed_positions.weight.device
        text_S = torch.arange(text_length, device=device)
        embeddings_ND = self.pos_ln(self.embed_positions(text_S))
        image_P = None
        if grid is not None:
            image_P = image_position_ids(*grid, self.config.image_bucket_size, device)
            image_PD = self.image_pos_ln(self.embed_image_positions(image_P))
            embeddings_ND = torch.cat([image_PD, embeddings_ND])
        shared = absolute_bias(
            self.pos_q_linear(embeddings_ND),
            self.pos_k_linear(embeddings_ND),
            self.config.attention_heads,
            self.config.attention_scale,
        )
        relative = self._relative(text_S, image_P)
        biases = zip(relative, prompt_lengths, strict=True)
        return EncoderPositions(
            embeddings_ND, tuple(behind_prompt((shared + r)[None], length) for r, length in biases)
        )

    def _relative(self, text_S: Tensor, image_P: Tensor | None) -> list[Tensor]:
        """Return the relative bias `[H, N, N]` of each layer: zero between image and text."""
        config = self.config
        token_SS = token_buckets(
            text_S, text_S, bucket_size=config.token_bucket_size, max_positions=config.max_positions
        )
        patches = 0 if image_P is None else len(image_P)
        image_PP = None
        if image_P is not None:
            image_PP = image_buckets(image_P, image_P, bucket_size=config.image_bucket_size)
        biases = []
        tables = zip(self.token_rel_pos_table_list, self.image_rel_pos_table_list, strict=True)
        for token_table, image_table in tables:
            bias = F.pad(relative_bias(token_SS, token_table), (patches, 0, patches, 0))
            if image_PP is not None:
                image_bias = relative_bias(image_PP, image_table)
                bias = bias + F.pad(image_bias, (0, len(text_S), 0, len(text_S)))
            biases.append(bias)
        return biases

    def _check_size(self, grid: tuple[int, int] | None, text_length: int) -> None:
        limit = self.config.image_bucket_size
        if grid is not None and max(grid) > limit:
            raise ValueError(
                f"feature map {grid[0]}x{grid[1]} exceeds the position table's {limit}"
            )
        if text_length > self.config.max_positions:
            raise ValueError(f"{text_length} source tokens exceed {self.config.max_positions}")

    def forward(
        self,
        x_BND: Tensor,
        padding_BN: Tensor,
        positions: EncoderPositions,
        cross_keys_ND: Tensor,
        prompts: Prompts | None,
        keep_layer_inputs: bool = False,
        share_bias: bool = False,
    ) -> EncoderOutput:
        """Run the layers on embedded input `[B, N, D]`.

        Args:
            x_BND: what `embed` returned.
            padding_BN: True at padding.
            positions: for this shape and these prompts.
            cross_keys_ND: handed on to the decoder.
            prompts: the prompts of both stacks.
            keep_layer_inputs: also return the input of each layer.
            share_bias: never copy a layer's bias for each sample.
        """
        stack = prompts.encoder if prompts is not None else None
        visible_BL = prompts.encoder_visible_BL if prompts is not None else None
        adapters = prompts.encoder_adapters if prompts is not None else None
        recompute = self.recompute and self.training
        hidden = HiddenKeys(padding_BN, visible_BL, shared=share_bias)
        kept = []
        for index, layer in enumerate(self.layers):
            kept.append(x_BND)
            prompt = stack[index] if stack is not None else None
            length = 0 if prompt is None else prompt.key.shape[2]
            bias = hidden.join(positions.layer_bias[index], length)
            adapter = adapters[index] if adapters is not None else None
            x_BND = run_layer(layer, x_BND, bias, prompt, adapter, recompute=recompute)
        kept.append(x_BND)
        return EncoderOutput(
            hidden_BND=self.layer_norm(x_BND),
            padding_BN=padding_BN,
            positions_ND=positions.embeddings_ND,
            cross_keys_ND=cross_keys_ND,
            layer_inputs=tuple(kept) if keep_layer_inputs else (),
        )
