"""Base checkpoints on disk, and the fingerprint that ties a prompt to its base.

A base folder holds `config.json`, `model.safetensors` and `tokenizer.json`. Other layouts are
refused with the command that converts them: training reads a base on every rank and at every start,
so it is converted once (`model.layouts`). Nothing here unpickles.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.errors import CheckpointError
from model.layouts.detection import CONFIG_FILE, conversion_of
from model.ofa import OFA, OFAConfig
from model.tensor_files import Whole, fingerprint_of

__all__ = [
    "CONFIG_FILE",
    "DERIVED_KEYS",
    "PACKAGED_BASES",
    "TOKENIZER_FILE",
    "WEIGHTS_FILE",
    "check_fit",
    "fingerprint",
    "load_base",
    "load_base_in_parts",
    "load_config",
    "load_into",
    "load_weights",
    "resolve_base",
    "save_base",
]

WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"

_ASSETS = Path(__file__).parent / "assets"
PACKAGED_BASES = {folder.name.replace("_", "-"): folder for folder in sorted(_ASSETS.glob("*/"))}
"""Bases that come with the package, by name; each is a folder in `model/assets`."""

DERIVED_KEYS = frozenset(
    {
        # Tied to encoder.embed_tokens, or functions of the configuration.
        "decoder.embed_tokens.weight",
        "decoder.output_projection.weight",
        "decoder.image_position_idx",
        "encoder.token_rp_bucket",
        "encoder.image_rp_bucket",
        "decoder.token_rp_bucket",
        "decoder.image_rp_bucket",
        "encoder.version",
        "decoder.version",
    }
)
"""Entries of a state dict that a base folder does not keep."""


def resolve_base(path_or_name: str) -> Path:
    """Return the folder of a base: the name of a packaged one, or a path.

    Raises:
        CheckpointError: there is no such folder, or it is not a base; a checkpoint of another
            layout is named with the command that converts it.
    """
    folder = PACKAGED_BASES.get(path_or_name, Path(path_or_name))
    command = None if path_or_name in PACKAGED_BASES else conversion_of(path_or_name)
    if command is not None and folder.exists():
        raise CheckpointError(f"{path_or_name} is not a base folder; convert it once: {command}")
    if not folder.is_dir():
        names = f", or one of: {', '.join(PACKAGED_BASES)}" if PACKAGED_BASES else ""
        hub = f"; a model of the Hugging Face hub is converted once: {command}" if command else ""
        raise CheckpointError(
            f"no base at {path_or_name!r}: give a folder with {CONFIG_FILE}{names}{hub}"
        )
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"{folder} is not a base: it has no {CONFIG_FILE}")
    return folder


def load_config(path_or_name: str) -> OFAConfig:
    """Read the architecture of a base.

    Raises:
        CheckpointError: the folder or its `config.json` is missing or unreadable.
    """
    file = resolve_base(path_or_name) / CONFIG_FILE
    try:
        return OFAConfig.from_dict(json.loads(file.read_text()))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from error


def load_weights(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU.

    Raises:
        CheckpointError: it is missing, truncated or another kind of file.
    """
    try:
        return load_file(file)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error


def check_fit(
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    origin: Path,
    spell: Callable[[str], str] = str,
) -> None:
    """Compare tensors with those of a model; derived ones don't count.

    Args:
        own: the model's, possibly without data.
        given: those of a file.
        origin: for messages.
        spell: the model's name of a tensor to the file's.

    Raises:
        CheckpointError: names the first missing, unexpected or misshaped keys.
    """
    own = {name: tensor for name, tensor in own.items() if name not in DERIVED_KEYS}
    given = {name: tensor for name, tensor in given.items() if name not in DERIVED_KEYS}
    problems = [f"{spell(name)} is missing" for name in own if name not in given]
    problems += [f"{spell(name)} is unexpected" for name in given if name not in own]
    for name in (name for name in own if name in given):
        shapes = list(given[name].shape), list(own[name].shape)
        if shapes[0] != shapes[1]:
            problems.append(f"{spell(name)} is {shapes[0]} instead of {shapes[1]}")
        elif given[name].is_floating_point() != own[name].is_floating_point():
            problems.append(f"{spell(name)} is {given[name].dtype} instead of {own[name].dtype}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{origin} doesn't fit its configuration: {'; '.join(problems[:3])}{more}"
        )


def load_into(model: nn.Module, tensors: dict[str, Tensor], origin: Path) -> None:
    """Copy tensors into a model by name, converting to the model's dtypes.

    Raises:
        CheckpointError: names the first missing, unexpected or misshaped keys.
    """
    check_fit(model.state_dict(), tensors, origin)
    given = {name: tensor for name, tensor in tensors.items() if name not in DERIVED_KEYS}
    model.load_state_dict(given, strict=False)


def load_base(path_or_name: str, *, dtype: torch.dtype = torch.float32) -> OFA:
    """Load a base in eval mode onto the CPU.

    Args:
        path_or_name: a folder, or the name of a packaged base such as `ofa-micro`.
        dtype: of the weights in memory, whatever they are on disk.

    Raises:
        CheckpointError: the folder is not a base, or its weights don't fit its configuration.
    """
    folder = resolve_base(path_or_name)
    model = OFA(load_config(path_or_name)).to(dtype)
    load_into(model, load_weights(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)
    return model.eval()


def load_base_in_parts(path_or_name: str, settle: Callable[[nn.Module], None]) -> OFA:
    """Load a base that may be too large to be whole in this process.

    The file is mapped, not read. Each module is given its own tensors and handed to `settle`, which
    may keep a part of them and let the rest go, before the next module is given any.

    Args:
        path_or_name: as of `load_base`.
        settle: called with each module that has tensors of its own, children before parents.

    Raises:
        CheckpointError: as `load_base`.
    """
    file = resolve_base(path_or_name) / WEIGHTS_FILE
    with torch.device("meta"):
        model = OFA(load_config(path_or_name))
    given = load_weights(file)
    check_fit(model.state_dict(), given, file)
    for prefix, module in reversed(list(model.named_modules())):
        names = [name for name, _ in _own_tensors(module)]
        if names:
            module.to_empty(device="cpu", recurse=False)
            for name, tensor in _own_tensors(module):
                tensor.detach().copy_(given[f"{prefix}.{name}"])
            settle(module)
    return model.eval()


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def save_base(
    model: OFA, tokenizer_file: Path, folder: Path, *, dtype: torch.dtype | None = None
) -> None:
    """Write a base folder, whole or not at all.

    Args:
        model: the model to save.
        tokenizer_file: copied into the folder.
        folder: must not exist, or be a base that is to be replaced.
        dtype: of the floating-point tensors on disk; None keeps them.

    Raises:
        CheckpointError: the folder exists and is something else.
    """
    if folder.exists() and not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"{folder} exists and is not a base; it is left alone")
    folder.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: _stored(tensor, dtype)
        for name, tensor in model.state_dict().items()
        if name not in DERIVED_KEYS
    }
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        new = Path(temporary) / "base"
        new.mkdir()
        save_file(tensors, new / WEIGHTS_FILE)
        (new / CONFIG_FILE).write_text(json.dumps(model.config.to_dict(), indent=2) + "\n")
        shutil.copyfile(tokenizer_file, new / TOKENIZER_FILE)
        for file in new.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if folder.exists():
            folder.rename(Path(temporary) / "replaced")
        new.rename(folder)


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    keep = dtype is None or not tensor.is_floating_point()
    return (
        tensor.detach().cpu().contiguous()
        if keep
        else tensor.detach().to("cpu", dtype).contiguous()
    )


def fingerprint(model: OFA, *, without: Collection[str] = (), whole: Whole | None = None) -> str:
    """Return `sha256:<hex>` over the names, dtypes, shapes and bytes of parameters and buffers.

    Tied weights count once, so the value depends on the model and not on how a file spells it.

    Args:
        model: the base.
        without: names of parameters and buffers to leave out, to look at the rest alone.
        whole: collects a tensor of which this process holds a part; one is collected at a time.
    """
    tensors = {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if name not in DERIVED_KEYS and name not in without
    }
    return fingerprint_of(tensors) if whole is None else fingerprint_of(tensors, whole=whole)
