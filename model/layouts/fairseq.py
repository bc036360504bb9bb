"""The published files such as `ofa_large.pt`: fairseq's dictionary of settings and tensors.

Tensors have the names that our model has too. Settings are an `argparse.Namespace` under `args`,
or under `model` and `task` of `cfg` in files of later versions.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.errors import CheckpointError
from model.layouts.pickled import load_pickled
from model.layouts.raw import RawCheckpoint, tensors_of, translate

_NAMES = {
    "encoder_embed_dim": "d_model",
    "encoder_ffn_embed_dim": "ffn_dim",
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "encoder_attention_heads": "attention_heads",
    "patch_image_size": "image_size",
    "max_image_size": "max_image_size",
    "image_bucket_size": "image_bucket_size",
    "token_bucket_size": "token_bucket_size",
    "max_source_positions": "max_positions",
    "code_dict_size": "code_count",
    "num_bins": "bin_count",
}
_DEMANDED = {
    "attn_scale_factor": 2,
    "activation_fn": "gelu",
    "no_scale_embedding": True,
    "encoder_normalize_before": True,
    "decoder_normalize_before": True,
    "scale_resids": False,
}


def read_fairseq(file: Path) -> RawCheckpoint:
    """Read a checkpoint of fairseq; its tensors stay in the mapped file.

    Raises:
        CheckpointError: the file is missing, damaged, refused, of another layout, or its settings
            are not those of a model that ours can be.
    """
    content = load_pickled(file)
    if not isinstance(content, Mapping) or "model" not in content:
        raise CheckpointError(
            f"{file} is not in fairseq's layout: it has no 'model'; of a Hugging Face model, give"
            " the folder that holds config.json"
        )
    given = _settings(content, file)
    # Older versions said it with two switches.
    if given.get("entangle_position_embedding") and not given.get("disable_entangle"):
        raise CheckpointError(
            f"{file}: it adds positions to the content (entangle_position_embedding); this model"
            " keeps them apart"
        )
    return RawCheckpoint(
        settings=translate(given, _NAMES, _DEMANDED, file),
        tensors=tensors_of(content["model"], file),
        files=(file,),
    )


def _settings(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    settings = _plain(content.get("args"), "args", file)
    cfg = _plain(content.get("cfg"), "cfg", file)
    for section in ("task", "model"):
        settings |= _plain(cfg.get(section), f"cfg.{section}", file)
    return settings


def _plain(section: object, name: str, file: Path) -> dict[str, Any]:
    if section is None:
        return {}
    if isinstance(section, argparse.Namespace):
        return dict(vars(section))
    if isinstance(section, Mapping):
        return dict(section)
    raise CheckpointError(f"{file}: {name} is a {type(section).__name__}, no table of settings")


def published_tuning_name(parameter: str) -> str:
    """Return the published checkpoints' key for a parameter that a tuning method adds.

    Args:
        parameter: As the method has it: `encoder.trans.0.weight` of a prefix, or with a layer's
            number in second place what belongs to that layer, such as `encoder.0.up_proj.bias` of
            adapters. Where methods are combined, the method stands in front.
    """
    stack, place, *rest = parameter.removeprefix("adapter.").removeprefix("prefix.").split(".")
    if place.isdigit():
        return ".".join([stack, "layers", place, "adapter", *rest])
    return ".".join([stack, f"{stack}_prompt_encoder", place, *rest])
