"""OFA: one encoder-decoder for captions, answers, boxes and entailment.

Source: Wang et al., arXiv 2202.03052. Parameter names equal those of the published checkpoints.

Dimensions: B batch, S source tokens, T target tokens, N rows of a decoding step, V vocabulary,
C, H, W image channels, rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.ofa.cache import DecoderCache, DecoderPositions
from model.ofa.config import OFAConfig
from model.ofa.decoder import Decoder
from model.ofa.encoder import Encoder, EncoderOutput, EncoderPositions
from model.ofa.folded import FoldedTrunk
from model.ofa.frozen import Memory, Savings
from model.ofa.prompts import Prompts, prompt_lengths
from model.ofa.regularisation import Regularisation

T = TypeVar("T")
_BLOCK = 32
"""Shapes are remembered for texts of a multiple of it: they are few, and others are views."""
_ALL = Savings()


class OFA(nn.Module):
    """The whole model. A frozen one computes once what follows from its weights alone."""

    def __init__(self, config: OFAConfig) -> None:
        super().__init__()
        self.config = config
        self.regularisation = Regularisation()
        self.batch_norm_trains = False
        embed_tokens = nn.Embedding(config.vocab.size, config.d_model, padding_idx=config.vocab.pad)
        self.encoder = Encoder(config, embed_tokens, self.regularisation)
        self.decoder = Decoder(config, embed_tokens, self.regularisation)
        self.frozen = False
        self.savings = _ALL
        self._memory = Memory({"trunk": 1, "source": 4, "target": 8})

    def initialise(self) -> None:
        """Draw all weights as for pretraining from nothing: N(0, 0.02), He-normal convolutions."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def freeze(self, savings: Savings = _ALL) -> Self:
        """Stop all gradients; until weights are loaded or thawed they must not change.

        Args:
            savings: what is spared because they do not change.
        """
        self.requires_grad_(False)
        self.frozen, self.savings = True, savings
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Start or stop gradients of all weights; weights that have gradients are not frozen."""
        self._memory.clear()
        if requires_grad:
            self.frozen = False
        return super().requires_grad_(requires_grad)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        # Weights move to another device or type: what followed from them stays behind.
        self._memory.clear()
        moved: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return moved

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._memory.clear()
        super()._load_from_state_dict(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Switch dropout on or off. BatchNorm keeps its statistics unless `batch_norm_trains`.

        A prompt is only reproducible on a base whose buffers are frozen too.
        """
        super().train(mode)
        if not self.batch_norm_trains:
            for module in self.encoder.embed_images.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.train(False)
        return self

    def recompute_activations(self, on: bool = True) -> None:
        """While training, compute each layer's activations again instead of keeping them."""
        self.encoder.recompute = on
        self.decoder.recompute = on

    def encode(
        self,
        source_ids_BS: Tensor,
        images_BCHW: Tensor | None = None,
        image_present_B: Tensor | None = None,
        prompts: Prompts | None = None,
        *,
        keep_layer_inputs: bool = False,
    ) -> EncoderOutput:
        """Encode an image and a text.

        Args:
            source_ids_BS: int64, `<s>` first, `</s>` last, right-padded.
            images_BCHW: scaled to -1..1, or the image trunk's features of them; None for text
                alone.
            image_present_B: False for samples of the batch that have no image.
            prompts: put in front of keys and values, and adapters, layer by layer.
            keep_layer_inputs: also return the input of each layer.
        """
        features_BPC, grid = None, None
        if images_BCHW is not None:
            features_BPC, grid = self.encoder.image_features(images_BCHW, self.image_trunk())
        x_BND, padding_BN = self.encoder.embed(source_ids_BS, features_BPC, image_present_B)
        lengths = prompt_lengths(
            prompts.encoder if prompts is not None else None, self.config.encoder_layers
        )
        positions, cross_keys_ND = self._of_source(grid, source_ids_BS.shape[1], lengths)
        encoded: EncoderOutput = self.encoder(
            x_BND,
            padding_BN,
            positions,
            cross_keys_ND,
            prompts,
            keep_layer_inputs,
            self._shares_bias,
        )
        return encoded

    def decode(
        self,
        decoder_ids_BT: Tensor,
        source: EncoderOutput,
        prompts: Prompts | None = None,
        code_mask_B: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits `[B, T, V]` of a whole target, and the layers' inputs `[B, T, D]`."""
        x_BTD = self.decoder.embed(decoder_ids_BT, code_mask_B)
        lengths = prompt_lengths(
            prompts.decoder if prompts is not None else None, self.config.decoder_layers
        )
        positions = self._of_target(decoder_ids_BT.shape[1], lengths, code_mask_B)
        features_BTD, layer_inputs = self.decoder(
            x_BTD, source, positions, prompts, self._shares_bias
        )
        return self.project(features_BTD), layer_inputs

    def forward(
        self,
        source_ids_BS: Tensor,
        images_BCHW: Tensor | None,
        image_present_B: Tensor | None,
        decoder_ids_BT: Tensor,
        prompts: Prompts | None = None,
        code_mask_B: Tensor | None = None,
    ) -> Tensor:
        """Return logits `[B, T, V]` for target prefixes `decoder_ids_BT` (`<s>` first)."""
        source = self.encode(source_ids_BS, images_BCHW, image_present_B, prompts)
        logits_BTV, _ = self.decode(decoder_ids_BT, source, prompts, code_mask_B)
        return logits_BTV

    def start_cache(
        self, source: EncoderOutput, prompts: Prompts | None = None, rows_per_source: int = 1
    ) -> DecoderCache:
        """Prepare step-by-step decoding with `rows_per_source` hypotheses for each source."""
        return self.decoder.start_cache(source, prompts, rows_per_source)

    def decode_step(self, token_ids_N: Tensor, cache: DecoderCache) -> Tensor:
        """Append one token to each row and return the logits `[N, V]` of the next.

        Raises:
            ValueError: the target is longer than the position table.
        """
        if cache.length == cache.room:
            length = max(min(cache.room + _BLOCK, self.config.max_positions), cache.length + 1)
            positions = self._of_target(length, (0,) * self.config.decoder_layers)
            cross_bias = self.decoder.cross_bias(positions.cross_queries_BTD, cache.cross_keys_SD)
            cache.grow(positions, cross_bias)
        return self.project(self.decoder.step(token_ids_N, cache))

    def project(self, features: Tensor) -> Tensor:
        """Map features `[..., D]` to logits `[..., V]` with the tied embedding."""
        return F.linear(features, self.decoder.embed_tokens.weight)

    @property
    def _shares_bias(self) -> bool:
        # Gradients of a bias come from kernels that hold it for each sample anyway.
        return self.frozen and self.savings.share_bias

    def image_trunk(self) -> Callable[[Tensor], Tensor]:
        """Return what maps images to features: the trunk, or what a frozen one is folded to."""
        trunk, savings = self.encoder.embed_images, self.savings
        if not self.frozen or (self.training and self.batch_norm_trains):
            return trunk
        if savings.fold_batch_norm:
            dtype, layout = self._compute_dtype(), savings.channels_last
            return self._memory.recall(
                "trunk", dtype, lambda: FoldedTrunk(trunk, dtype, channels_last=layout)
            )
        if savings.channels_last:
            return lambda images: trunk(images.contiguous(memory_format=torch.channels_last))
        return trunk

    def _of_source(
        self, grid: tuple[int, int] | None, length: int, lengths: tuple[int, ...]
    ) -> tuple[EncoderPositions, Tensor]:
        """Return what a source's positions contribute, to the encoder and to cross-attention."""

        def make(count: int) -> tuple[EncoderPositions, Tensor]:
            positions = self.encoder.positions(grid, count, lengths)
            return positions, self.decoder.cross_pos_k_linear(positions.embeddings_ND)

        def make_in(dtype: torch.dtype) -> tuple[EncoderPositions, Tensor]:
            positions, cross_keys_ND = make(block)
            return positions.to(dtype), cross_keys_ND.to(dtype)

        if not self._keeps_positions:
            return make(length)
        block = _block(length, self.config.max_positions)
        positions, cross_keys_ND = self._recall_positions("source", (grid, block, lengths), make_in)
        count = len(positions.embeddings_ND) - block + length
        return positions.first(count), cross_keys_ND[:count]

    def _of_target(
        self, length: int, lengths: tuple[int, ...], code_mask_B: Tensor | None = None
    ) -> DecoderPositions:
        """Return what a target's positions contribute."""
        if not self._keeps_positions or code_mask_B is not None:
            return self.decoder.positions(length, lengths, code_mask_B)
        block = _block(length, self.config.max_positions)
        positions = self._recall_positions(
            "target",
            (block, lengths),
            lambda dtype: self.decoder.positions(block, lengths).to(dtype),
        )
        return positions.first(length)

    @property
    def _keeps_positions(self) -> bool:
        return self.frozen and self.savings.keep_positions

    def _recall_positions(
        self, kind: str, key: tuple[object, ...], make: Callable[[torch.dtype], T]
    ) -> T:
        dtype = self._compute_dtype()

        def in_own_precision() -> T:
            # Rounded once, at the end: a bias is a sum.
            with torch.autocast(self.encoder.embed_positions.weight.device.type, enabled=False):
                return make(dtype)

        return self._memory.recall(kind, (*key, dtype), in_own_precision)

    def _compute_dtype(self) -> torch.dtype:
        weight = self.encoder.embed_positions.weight
        device = weight.device.type
        return (
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        )


def _block(length: int, limit: int) -> int:
    """Round a length up, but not beyond what there are positions for."""
    return max(length, min(-(-length // _BLOCK) * _BLOCK, limit))
