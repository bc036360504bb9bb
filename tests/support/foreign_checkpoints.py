"""The reference's micro model written in the layouts that others publish.

Names and settings come from the recorded fixtures, not from the code under test.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from torch import Tensor

from tests.support.golden_micro import FOLDER, read_json

TEXTS, CODES, BINS = 256, 8, 100
"""The micro model has 369 ids; this split of them leaves room for every byte."""

_HUGGINGFACE = json.loads((FOLDER.parent / "text" / "hf_layout.json").read_text(encoding="utf-8"))


def golden_tensors() -> dict[str, Tensor]:
    """All that the reference saved, in its names and dtypes."""
    return load_file(FOLDER / "model.safetensors")


def fairseq_settings() -> dict[str, Any]:
    """The settings that the reference keeps beside its tensors."""
    config = read_json("config.json")["config"]
    return {
        "arch": "ofa_micro",
        "encoder_embed_dim": config["embed_dim"],
        "encoder_ffn_embed_dim": config["ffn_dim"],
        "encoder_layers": config["encoder_layers"],
        "decoder_layers": config["decoder_layers"],
        "encoder_attention_heads": config["attention_heads"],
        "patch_image_size": config["image_height"],
        "max_image_size": 512,
        "image_bucket_size": config["image_bucket_size"],
        "token_bucket_size": config["token_bucket_size"],
        "max_source_positions": config["max_source_positions"],
        "code_image_size": config["code_image_size"],
        "attn_scale_factor": config["attn_scale_factor"],
        "activation_fn": "gelu",
        "no_scale_embedding": True,
        "encoder_normalize_before": True,
        "decoder_normalize_before": True,
        "entangle_position_embedding": False,
        "scale_resids": False,
        "code_dict_size": CODES,
        "num_bins": BINS,
        "lr": [0.0001],
        "bpe_dir": None,
    }


def write_fairseq(
    file: Path,
    tensors: Mapping[str, Tensor] | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    as_cfg: bool = False,
    old_format: bool = False,
    **more: Any,
) -> Path:
    """Writes one file of fairseq, its settings under `args` or as later versions have them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    space = argparse.Namespace(**(fairseq_settings() if settings is None else settings))
    content = {
        "args": None if as_cfg else space,
        "cfg": {"_name": None, "task": space, "model": space, "common": {"fp16": True}}
        if as_cfg
        else None,
        "model": dict(golden_tensors() if tensors is None else tensors),
        "extra_state": {"epoch": 3, "val_loss": 1.5},
        **more,
    }
    torch.save(content, file, _use_new_zipfile_serialization=not old_format)
    return file


def huggingface_settings() -> dict[str, Any]:
    """`config.json` of the micro model, with all defaults of its class."""
    config = read_json("config.json")["config"]
    return {
        **_HUGGINGFACE["config_class_defaults"],
        "model_type": "ofa",
        "vocab_size": config["vocab"]["size"],
        "d_model": config["embed_dim"],
        "encoder_ffn_dim": config["ffn_dim"],
        "decoder_ffn_dim": config["ffn_dim"],
        "encoder_layers": config["encoder_layers"],
        "decoder_layers": config["decoder_layers"],
        "encoder_attention_heads": config["attention_heads"],
        "decoder_attention_heads": config["attention_heads"],
        "resnet_type": "resnet_micro",
        "code_dict_size": CODES,
        "num_bins": BINS,
    }


def huggingface_tensors() -> dict[str, Tensor]:
    """The reference's tensors as Hugging Face has them."""
    renamed = huggingface_names(golden_tensors())
    renamed["decoder.image_position_idx"] = renamed["decoder.image_position_idx"][:-1]
    return renamed


def huggingface_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names that the recorded rules give."""
    renamed = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, replacement in _HUGGINGFACE["regex_rules"]:
            new = re.sub(pattern, replacement, new)
        if not name.endswith(".version"):
            renamed[new] = tensor
    return renamed


def write_huggingface(
    folder: Path,
    tensors: Mapping[str, Tensor] | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    safetensors: bool = False,
    shards: int = 1,
) -> Path:
    """Writes a folder of Hugging Face: one file or shards, pickled or safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    content = dict(huggingface_tensors() if tensors is None else tensors)
    (folder / "config.json").write_text(
        json.dumps(huggingface_settings() if settings is None else settings)
    )
    stem, suffix = ("model", "safetensors") if safetensors else ("pytorch_model", "bin")
    places = {name: index % shards for index, name in enumerate(content)}
    files = [f"{stem}-{index + 1:05}-of-{shards:05}.{suffix}" for index in range(shards)]
    files = [f"{stem}.{suffix}"] if shards == 1 else files
    for index, file in enumerate(files):
        part = {name: content[name].clone() for name, place in places.items() if place == index}
        if safetensors:
            save_file(part, folder / file, metadata={"format": "pt"})
        else:
            torch.save(part, folder / file)
    if shards > 1:
        index_of = {name: files[place] for name, place in places.items()}
        (folder / f"{stem}.{suffix}.index.json").write_text(
            json.dumps({"metadata": {"total_size": 1}, "weight_map": index_of})
        )
    return folder


def write_vocabulary(folder: Path, *, huggingface: bool) -> Path:
    """Writes a vocabulary of the 256 bytes in one of the two layouts."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert len(tokens) == TEXTS
    if huggingface:
        order = ["<s>", "<pad>", "</s>", "<unk>", *tokens, "<mask>"]
        (folder / "vocab.json").write_text(json.dumps({t: n for n, t in enumerate(order)}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        return folder
    (folder / "encoder.json").write_text(json.dumps({t: n for n, t in enumerate(tokens)}))
    (folder / "dict.txt").write_text("".join(f"{n} 1\n" for n in range(len(tokens))))
    (folder / "vocab.bpe").write_text("#version: 0.2\n")
    return folder
