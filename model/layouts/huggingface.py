"""The Hugging Face layout: a folder of `config.json`, weights and a vocabulary.

Weights are one file or shards that an index names, in safetensors or as torch.save wrote them;
where both are there, safetensors are read. Names of tensors differ from ours by six rules.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.errors import CheckpointError
from model.layouts.detection import CONFIG_FILE
from model.layouts.pickled import load_pickled
from model.layouts.raw import RawCheckpoint, tensors_of, translate

SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"
_INDEX = ".index.json"

_NAMES = {
    "vocab_size": "vocab_size",
    "d_model": "d_model",
    "encoder_ffn_dim": "ffn_dim",
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "encoder_attention_heads": "attention_heads",
    "image_bucket_size": "image_bucket_size",
    "token_bucket_size": "token_bucket_size",
    "max_position_embeddings": "max_positions",
    "code_dict_size": "code_count",
    "num_bins": "bin_count",
}
_DEMANDED = {
    "attn_scale_factor": 2,
    "activation_function": "gelu",
    "scale_embedding": False,
    "entangle_position_embedding": False,
    "encoder_normalize_before": True,
    "decoder_normalize_before": True,
    "normformer": True,
}
_RULES = (
    # Where, our part of the name, theirs. The first rule that fits is the only one.
    (r"encoder\.layers\.\d+\.", "attn_ln", "self_attn_mid_layer_norm"),
    (r"decoder\.layers\.\d+\.", "self_attn_ln", "self_attn_mid_layer_norm"),
    (r"decoder\.layers\.\d+\.", "cross_attn_ln", "cross_attn_mid_layer_norm"),
    (r"decoder\.layers\.\d+\.", "encoder_attn", "cross_attn"),
    (r"decoder\.layers\.\d+\.", "encoder_attn_layer_norm", "cross_attn_layer_norm"),
    (r"(?:en|de)coder\.layers\.\d+\.", "ffn_layernorm", "ffn_layer_norm"),
)
_TO_OWN = [(re.compile(rf"({place}){theirs}\."), own) for place, own, theirs in _RULES]
_TO_THEIRS = [(re.compile(rf"({place}){own}\."), theirs) for place, own, theirs in _RULES]


def own_name(name: str) -> str:
    """The model's name of a tensor in this layout."""
    return _renamed(name, _TO_OWN)


def huggingface_name(name: str) -> str:
    """This layout's name of a tensor of the model; the inverse of `own_name`."""
    return _renamed(name, _TO_THEIRS)


def _renamed(name: str, rules: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in rules:
        if pattern.match(name):
            return pattern.sub(rf"\g<1>{replacement}.", name, count=1)
    return name


def read_huggingface(folder: Path) -> RawCheckpoint:
    """Read a folder in the Hugging Face layout; its tensors stay in the mapped files.

    Raises:
        CheckpointError: a file is missing, damaged or refused, or the settings are not those of a
            model that ours can be.
    """
    files = weight_files(folder)
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= {own_name(name): tensor for name, tensor in _read_tensors(file).items()}
    given = _read_object(folder / CONFIG_FILE)
    return RawCheckpoint(
        settings=translate(given, _NAMES, _DEMANDED, folder / CONFIG_FILE),
        tensors=tensors,
        files=files,
        spell=huggingface_name,
    )


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the files with the weights.

    Raises:
        CheckpointError: there are none, the index is damaged, or a shard that it names is missing.
    """
    for name in (SAFETENSORS, PICKLED):
        if (folder / (name + _INDEX)).is_file():
            return _shards(folder / (name + _INDEX))
        if (folder / name).is_file():
            return (folder / name,)
    raise CheckpointError(
        f"{folder} has no weights: neither {SAFETENSORS} nor {PICKLED}, nor an index of shards"
    )


def _shards(index: Path) -> tuple[Path, ...]:
    places = _read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} names no shards under 'weight_map'")
    names = sorted({str(name) for name in places.values()})
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{index}: shard {name!r} is not the name of a file beside it")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index.parent / name} is missing; {index.name} names it")
    return tuple(index.parent / name for name in names)


def _read_tensors(file: Path) -> dict[str, Tensor]:
    if file.suffix != ".safetensors":
        return tensors_of(load_pickled(file), file)
    return map_safetensors(file)


def map_safetensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file as views of the mapped file.

    Raises:
        CheckpointError: it is missing, truncated or another kind of file.
    """
    try:
        with safe_open(file, framework="pt") as content:
            return {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is not a JSON object")
    return content
