"""A base that comes into memory module by module is the one that comes at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model.checkpoint import (
    CONFIG_FILE,
    PACKAGED_BASES,
    WEIGHTS_FILE,
    fingerprint,
    load_base,
    load_base_in_parts,
)
from model.errors import CheckpointError

MICRO = PACKAGED_BASES["ofa-micro"]


def test_it_is_the_base_that_is_loaded_at_once() -> None:
    parts = load_base_in_parts("ofa-micro", lambda module: None)
    whole = load_base("ofa-micro")
    assert fingerprint(parts) == fingerprint(whole)
    assert parts.training == whole.training is False
    assert parts.encoder.embed_tokens is parts.decoder.embed_tokens
    theirs = whole.state_dict()
    for name, tensor in parts.state_dict().items():
        assert torch.equal(tensor, theirs[name])
        assert tensor.dtype == theirs[name].dtype


def test_each_module_comes_once_and_after_its_children() -> None:
    settled: list[nn.Module] = []

    def settle(module: nn.Module) -> None:
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        assert own
        assert all(not tensor.is_meta for tensor in own)
        settled.append(module)

    base = load_base_in_parts("ofa-micro", settle)
    assert len(settled) == len({id(module) for module in settled})
    place = {id(module): at for at, module in enumerate(settled)}
    for module in base.modules():
        for child in module.children():
            if id(module) in place and id(child) in place:
                assert place[id(child)] < place[id(module)]


def test_what_a_process_does_not_keep_is_not_in_its_memory() -> None:
    def settle(module: nn.Module) -> None:
        for parameter in module.parameters(recurse=False):
            parameter.data = torch.empty(0)

    base = load_base_in_parts("ofa-micro", settle)
    assert sum(parameter.numel() for parameter in base.parameters()) == 0


def test_a_fingerprint_collects_one_tensor_after_the_other() -> None:
    base, asked = load_base("ofa-micro"), 0

    def whole(tensor: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        return tensor.flip(0).flip(0) if tensor.dim() else tensor

    assert fingerprint(base, whole=whole) == fingerprint(base)
    assert asked > 100


def test_a_damaged_base_is_refused_before_any_module_comes(tmp_path: Path) -> None:
    def settle(module: nn.Module) -> None:
        raise AssertionError("a module came")

    shutil.copy(MICRO / CONFIG_FILE, tmp_path)
    with pytest.raises(CheckpointError, match="is missing"):
        load_base_in_parts(str(tmp_path), settle)
    weights = (MICRO / WEIGHTS_FILE).read_bytes()
    (tmp_path / WEIGHTS_FILE).write_bytes(weights[:-100])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_base_in_parts(str(tmp_path), settle)
