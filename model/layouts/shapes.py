"""The architecture of a checkpoint: what it declares, and from its tensors what it does not."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from model.errors import CheckpointError
from model.ofa import OFA, OFAConfig, VocabLayout
from model.ofa.config import OFA_VOCAB

_TRUNK = "encoder.embed_images"
_SPECIALS_AND_MASK = 5
_VOCABULARY = ("vocab_size", "code_count", "bin_count")


def config_of(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str, origin: Path
) -> OFAConfig:
    """Build the configuration of a checkpoint.

    What is declared wins: tensors that don't fit it are then named as such. The vocabulary is
    split into text, codes and bins as declared, else as in the published models.

    Args:
        settings: fields of OFAConfig, and `vocab_size`, `code_count` and `bin_count`.
        tensors: by the model's names.
        name: of the base.
        origin: for messages.

    Raises:
        CheckpointError: the tensors are not those of an OFA, or the sizes don't fit each other.
    """
    shapes = _Shapes(tensors, origin)
    fields = {key: value for key, value in settings.items() if key not in _VOCABULARY}
    for field, infer in _INFERRED.items():
        if field not in fields:
            fields[field] = infer(shapes)
    size = settings.get("vocab_size", shapes.rows("encoder.embed_tokens.weight"))
    codes = settings.get("code_count", OFA_VOCAB.code_count)
    bins = settings.get("bin_count", OFA_VOCAB.bin_count)
    texts = size - _SPECIALS_AND_MASK - codes - bins
    if min(texts, codes, bins) < 0:
        raise CheckpointError(
            f"{origin}: {size} ids are too few for {codes} image codes and {bins} location bins"
        )
    vocab = VocabLayout(text_count=texts, code_count=codes, bin_count=bins)
    try:
        return OFAConfig(name=name, vocab=vocab, **fields)
    except (ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{origin}: {error}") from error


def empty_model(config: OFAConfig) -> OFA:
    """Build a model whose tensors have names, shapes and dtypes, but no data."""
    with torch.device("meta"), _NoInitialisation():
        return OFA(config)


class _NoInitialisation(TorchFunctionMode):
    """Leaves out what fills tensors: without data, torch would load its symbolic shapes for it."""

    _FILLS = (Tensor.normal_, Tensor.uniform_, Tensor.zero_, Tensor.fill_)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in self._FILLS or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


class _Shapes:
    """Sizes of tensors, or the error that the checkpoint is no OFA."""

    def __init__(self, tensors: Mapping[str, Tensor], origin: Path) -> None:
        self._tensors = tensors
        self._origin = origin

    def rows(self, key: str) -> int:
        return self._size(key, 0)

    def columns(self, key: str) -> int:
        return self._size(key, 1)

    def count(self, prefix: str) -> int:
        """One more than the largest number that follows the prefix."""
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        found = [int(match[1]) for match in map(pattern.match, self._tensors) if match]
        return max(found, default=-1) + 1

    def _size(self, key: str, dimension: int) -> int:
        tensor = self._tensors.get(key)
        if tensor is None:
            raise CheckpointError(f"{self._origin} is no OFA checkpoint: it has no {key}")
        if tensor.dim() <= dimension:
            raise CheckpointError(f"{self._origin}: {key} is {list(tensor.shape)}, no table")
        return int(tensor.shape[dimension])


def _image_bucket_size(shapes: _Shapes) -> int:
    # From the relative table: only the absolute one may be shorter than the model's.
    rows = shapes.rows("encoder.image_rel_pos_table_list.0.weight")
    return (math.isqrt(max(rows - 3, 0)) + 1) // 2


_INFERRED: dict[str, Callable[[_Shapes], Any]] = {
    "d_model": lambda shapes: shapes.columns("encoder.embed_tokens.weight"),
    "ffn_dim": lambda shapes: shapes.rows("encoder.layers.0.fc1.weight"),
    "encoder_layers": lambda shapes: shapes.count("encoder.layers"),
    "decoder_layers": lambda shapes: shapes.count("decoder.layers"),
    "attention_heads": lambda shapes: shapes.rows("encoder.layers.0.self_attn.c_attn"),
    "resnet_blocks": lambda shapes: tuple(
        shapes.count(f"{_TRUNK}.layer{stage}") for stage in (1, 2, 3)
    ),
    "resnet_width": lambda shapes: shapes.rows(f"{_TRUNK}.conv1.weight"),
    "max_positions": lambda shapes: shapes.rows("encoder.embed_positions.weight") - 2,
    "image_bucket_size": _image_bucket_size,
    "token_bucket_size": lambda shapes: (
        (shapes.rows("encoder.token_rel_pos_table_list.0.weight") + 1) // 2
    ),
}
