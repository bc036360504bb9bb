"""Which layout a path has, told from the outside before anything is loaded."""

from __future__ import annotations

import json
import re
import shlex
from enum import StrEnum
from pathlib import Path

CONFIG_FILE = "config.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
_OWN_FIELD = "resnet_blocks"
_HUGGINGFACE_FIELD = "encoder_ffn_dim"
_NO_PICKLES = frozenset({".safetensors", ".json", ".txt", ".md", ".yaml"})


class Layout(StrEnum):
    """How a checkpoint lies on disk."""

    PREFIXWORKS = "prefixworks"
    """A base folder: `config.json`, `model.safetensors`, `tokenizer.json`."""
    FAIRSEQ = "fairseq"
    """One file of torch.save with `args` or `cfg`, and `model`."""
    HUGGINGFACE = "huggingface"
    """A folder with `config.json`, the weights in one file or in shards, and a vocabulary."""


def layout_of(path: Path) -> Layout | None:
    """Return the layout that a file or folder seems to have, None where it has none."""
    if path.is_file():
        return None if path.suffix in _NO_PICKLES else Layout.FAIRSEQ
    try:
        fields = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(fields, dict):
        return None
    if _OWN_FIELD in fields:
        return Layout.PREFIXWORKS
    if _HUGGINGFACE_FIELD in fields or fields.get("model_type") == "ofa":
        return Layout.HUGGINGFACE
    return None


def is_hub_id(place: str) -> bool:
    """Whether a place is meant for the Hugging Face hub: `owner/name`, and not a path here."""
    return (
        _HUB_ID.fullmatch(place) is not None
        and not Path(place).exists()
        and not Path(place).parent.is_dir()
    )


def conversion_of(place: str) -> str | None:
    """Return the command that makes a base of a foreign checkpoint, None where it is none."""
    path = Path(place)
    layout = Layout.HUGGINGFACE if is_hub_id(place) else layout_of(path)
    if layout is None or layout is Layout.PREFIXWORKS:
        return None
    name = path.name.partition("@")[0].removesuffix(".pt")
    vocab = " --vocab FOLDER" if layout is Layout.FAIRSEQ else ""
    output = shlex.quote(f"data/bases/{name}")
    return f"prefixworks model convert {shlex.quote(place)} {output}{vocab}"
