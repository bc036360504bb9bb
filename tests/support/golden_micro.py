"""The reference's micro model with its prompts and cases, for parity tests."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from model.ofa.config import OFAConfig, VocabLayout
from model.ofa.model import OFA
from model.ofa.prompts import LayerPrompt, Prompts, StackPrompt
from model.tuning import AdapterConfig, TuningConfig, build_tuned_model

FOLDER = Path(__file__).parent.parent / "parity" / "fixtures" / "ofa_micro"
HEADS = 4
LAYERS = 2
ADAPTER_DIM = 8
BIN_RANGE = (269, 369)
# Tables that follow from the configuration, and the tied copy of the embedding.
_DERIVED = {
    "encoder.version",
    "decoder.version",
    "decoder.image_position_idx",
    "decoder.output_projection.weight",
}


def read_json(name: str) -> Any:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


@cache
def cases() -> dict[str, Tensor]:
    return load_file(FOLDER / "cases.safetensors")


@cache
def base() -> OFA:
    config = OFAConfig(
        name="golden-micro",
        d_model=64,
        ffn_dim=256,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        attention_heads=HEADS,
        resnet_blocks=(1, 1, 1),
        vocab=VocabLayout(text_count=200, code_count=64, bin_count=100),
        image_size=64,
    )
    model = OFA(config)
    missing, unexpected = model.load_state_dict(_weights("model"), strict=False)
    assert set(unexpected) <= _DERIVED
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return model.eval().freeze()


@cache
def prompts(variant: str) -> Prompts | None:
    """What a variant hands to the base; the variants are those of the reference's config.json."""
    if variant == "base":
        return None
    if variant.startswith("adapter"):
        return _with_adapters(prompts("prefix_both") if variant == "adapter_prefix" else Prompts())
    read = _projected if variant == "proj_both" else _plain
    return Prompts(
        encoder=None if variant == "prefix_dec" else read("encoder"),
        decoder=None if variant == "prefix_enc" else read("decoder"),
    )


def image_inputs() -> tuple[Tensor, Tensor]:
    return cases()["inputs/patch_images"], cases()["inputs/patch_masks"].bool()


def ids(name: str) -> Tensor:
    return cases()[name].long()


def adapter_weights() -> dict[str, Tensor]:
    """The reference's adapters by our names, such as encoder.0.down_proj.weight."""
    names = {
        name: name.replace("layers.", "").replace("adapter.", "") for name in _weights("adapter")
    }
    return {names[name]: tensor for name, tensor in _weights("adapter").items()}


def _with_adapters(plain: Prompts | None) -> Prompts:
    assert plain is not None
    tuning = TuningConfig(method="adapter", adapter=AdapterConfig(dim=ADAPTER_DIM))
    tuned = build_tuned_model(base(), tuning)
    tuned.load_exported(adapter_weights())
    adapters = tuned.prompts()
    assert adapters is not None
    return dataclasses.replace(
        plain,
        encoder_adapters=adapters.encoder_adapters,
        decoder_adapters=adapters.decoder_adapters,
    )


def _weights(name: str) -> dict[str, Tensor]:
    return {key: value.float() for key, value in load_file(FOLDER / f"{name}.safetensors").items()}


def _plain(stack: str) -> StackPrompt:
    return _slots(_weights("prefix")[f"{stack}.{stack}_prompt_encoder.embedding.weight"])


def _projected(stack: str) -> StackPrompt:
    weights, place = _weights("proj"), f"{stack}.{stack}_prompt_encoder"
    hidden = torch.relu(
        weights[f"{place}.embedding.weight"] @ weights[f"{place}.trans.0.weight"].T
        + weights[f"{place}.trans.0.bias"]
    )
    return _slots(hidden @ weights[f"{place}.trans.2.weight"].T + weights[f"{place}.trans.2.bias"])


def _slots(table: Tensor) -> StackPrompt:
    slots = table.view(len(table), 2 * LAYERS, HEADS, -1).permute(1, 2, 0, 3).unsqueeze(1)
    return tuple(LayerPrompt(slots[2 * i], slots[2 * i + 1]) for i in range(LAYERS))
