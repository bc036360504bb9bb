"""A small random base on disk: real parts, made in a second."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from model.checkpoint import save_base
from model.ofa.config import OFAConfig
from model.ofa.model import OFA
from model.tokenizer import OFATokenizer, train_tokenizer


def small_tokenizer(
    texts: Sequence[str], *, text_count: int = 300, bin_count: int = 64, code_count: int = 8
) -> OFATokenizer:
    """A tokenizer that knows the words of the texts."""
    return train_tokenizer(texts, text_count=text_count, bin_count=bin_count, code_count=code_count)


def small_model(
    tokenizer: OFATokenizer, *, seed: int, name: str = "ofa-small", image_size: int = 64
) -> OFA:
    """A model of random weights for square images of this side in pixels, in training mode."""
    config = OFAConfig(
        name=name,
        d_model=32,
        ffn_dim=64,
        encoder_layers=2,
        decoder_layers=2,
        attention_heads=2,
        resnet_blocks=(1, 1, 1),
        resnet_width=8,
        vocab=tokenizer.layout,
        image_size=image_size,
        max_image_size=128,
        image_bucket_size=8,
        token_bucket_size=32,
        max_positions=128,
    )
    torch.manual_seed(seed)
    model = OFA(config)
    model.initialise()
    return model


def write_base(model: OFA, tokenizer: OFATokenizer, folder: Path) -> None:
    """Writes the base folder."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "tokenizer.json"
        tokenizer.save(file)
        save_base(model, file, folder)
