"""OFA: one encoder-decoder for captions, answers, boxes and entailment.

Source: Wang et al., arXiv 2202.03052. Parameter names equal those of the published checkpoints.

Dimensions: B batch, S source tokens, T target tokens, N rows of a decoding step, V vocabulary,
C, H, W image channels, rows and columns.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.ofa.config import OFAConfig
from model.ofa.decoder import Decoder, DecoderCache, DecoderPositions
from model.ofa.encoder import Encoder, EncoderOutput, EncoderPositions
from model.ofa.prompts import Prompts
from model.ofa.regularisation import Regularisation


class OFA(nn.Module):
    """The whole model. A frozen one remembers what its positions contribute for each shape."""

    def __init__(self, config: OFAConfig) -> None:
        super().__init__()
        self.config = config
        self.regularisation = Regularisation()
        self.batch_norm_trains = False
        embed_tokens = nn.Embedding(config.vocab.size, config.d_model, padding_idx=config.vocab.pad)
        self.encoder = Encoder(config, embed_tokens, self.regularisation)
        self.decoder = Decoder(config, embed_tokens, self.regularisation)
        self.frozen = False
        self._encoder_positions: dict[tuple[object, ...], EncoderPositions] = {}
        self._decoder_positions: dict[tuple[object, ...], DecoderPositions] = {}

    def initialise(self) -> None:
        """Draw all weights as for pretraining from nothing: N(0, 0.02), He-normal convolutions."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def freeze(self) -> Self:
        """Stop all gradients; from here on the weights must not change."""
        self.requires_grad_(False)
        self.frozen = True
        self._encoder_positions.clear()
        self._decoder_positions.clear()
        return self

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
            images_BCHW: scaled to -1..1; None for text alone.
            image_present_B: False for samples of the batch that have no image.
            prompts: put in front of keys and values, and adapters, layer by layer.
            keep_layer_inputs: also return the input of each layer.
        """
        features_BPC, grid = None, None
        if images_BCHW is not None:
            features_BPC, grid = self.encoder.image_features(images_BCHW)
        x_BND, padding_BN = self.encoder.embed(source_ids_BS, features_BPC, image_present_B)
        positions = self._positions_of_source(grid, source_ids_BS.shape[1])
        encoded: EncoderOutput = self.encoder(
            x_BND, padding_BN, positions, prompts, keep_layer_inputs
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
        positions = self._positions_of_target(decoder_ids_BT.shape[1], code_mask_B)
        features_BTD, layer_inputs = self.decoder(x_BTD, source, positions, prompts)
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
        """Append one token to each row and return the logits `[N, V]` of the next."""
        return self.project(self.decoder.step(token_ids_N, cache))

    def project(self, features: Tensor) -> Tensor:
        """Map features `[..., D]` to logits `[..., V]` with the tied embedding."""
        return F.linear(features, self.decoder.embed_tokens.weight)

    def _positions_of_source(self, grid: tuple[int, int] | None, length: int) -> EncoderPositions:
        if not self.frozen:
            return self.encoder.positions(grid, length)
        key = (grid, length, *self._place())
        if key not in self._encoder_positions:
            with torch.no_grad():
                self._encoder_positions[key] = self.encoder.positions(grid, length)
        return self._encoder_positions[key]

    def _positions_of_target(self, length: int, code_mask_B: Tensor | None) -> DecoderPositions:
        if not self.frozen or code_mask_B is not None:
            return self.decoder.positions(length, code_mask_B)
        key = (length, *self._place())
        if key not in self._decoder_positions:
            with torch.no_grad():
                self._decoder_positions[key] = self.decoder.positions(length)
        return self._decoder_positions[key]

    def _place(self) -> tuple[object, ...]:
        weight = self.encoder.embed_positions.weight
        return weight.device, weight.dtype, torch.is_autocast_enabled(weight.device.type)
