"""Any checkpoint, opened under the model's own names with its tensors still on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from model.checkpoint import PACKAGED_BASES, WEIGHTS_FILE, load_config
from model.errors import CheckpointError
from model.layouts.detection import Layout, is_hub_id, layout_of
from model.layouts.fairseq import read_fairseq
from model.layouts.fitting import fit, with_embedding
from model.layouts.hub import fetch
from model.layouts.huggingface import map_safetensors, read_huggingface
from model.layouts.raw import RawCheckpoint
from model.layouts.shapes import config_of
from model.ofa import OFAConfig, nearest_preset


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that fits the model."""

    layout: Layout
    path: Path
    """File or folder; for a model of the hub, its folder in the cache."""
    config: OFAConfig
    tensors: Mapping[str, Tensor]
    """Parameters and buffers by the model's names, in the dtypes of the file: views of the mapped
    file, so that opening takes no memory."""
    files: tuple[Path, ...]
    """Files with the weights."""
    notes: tuple[str, ...]
    """What was changed to make the tensors fit, a line each."""

    @property
    def folder(self) -> Path:
        """Where the vocabulary lies, if it lies beside the weights."""
        return self.path if self.path.is_dir() else self.path.parent


def open_checkpoint(place: str, *, name: str | None = None) -> Checkpoint:
    """Open a checkpoint of any layout.

    Args:
        place: a file of fairseq, a folder in the Hugging Face layout, a base folder or the name of
            a packaged base, or `owner/name[@revision]` on the Hugging Face hub.
        name: of the base; by default its own, else that of the preset that it equals, else that of
            the file or folder.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged, refused or another model's.
    """
    path = fetch(place) if is_hub_id(place) else PACKAGED_BASES.get(place, Path(place))
    layout = layout_of(path)
    if layout is None:
        if not path.exists():
            raise CheckpointError(f"no checkpoint at {place!r}")
        raise CheckpointError(
            f"{path} is no checkpoint: give a file of fairseq (.pt), or a folder with the"
            " config.json and the weights of a Hugging Face model or of a base"
        )
    if layout is Layout.PREFIXWORKS:
        file = path / WEIGHTS_FILE
        raw = RawCheckpoint(settings={}, tensors=map_safetensors(file), files=(file,))
        config = load_config(str(path))
    else:
        raw = read_fairseq(path) if layout is Layout.FAIRSEQ else read_huggingface(path)
        raw = replace(raw, tensors=with_embedding(raw.tensors, path))
        config = _named(config_of(raw.settings, raw.tensors, "", path), place)
    if name is not None:
        config = replace(config, name=name)
    tensors, notes = fit(config, raw, path)
    return Checkpoint(
        layout=layout, path=path, config=config, tensors=tensors, files=raw.files, notes=notes
    )


def _named(config: OFAConfig, place: str) -> OFAConfig:
    preset, differing = nearest_preset(config)
    own = Path(place).name.partition("@")[0].removesuffix(".pt")
    return replace(config, name=own if differing else preset)
