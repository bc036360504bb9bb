"""Streams of tensors are what safetensors would write and what the fingerprint promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import tensor_files
from model.errors import CheckpointError
from model.tensor_files import fingerprint_of, stored_bytes, write_safetensors

TENSORS = {
    "b.scalar": torch.tensor(7),
    "a.half": torch.randn(3, dtype=torch.float16),
    "c.table": torch.randn(5, 4),
    "d.turned": torch.randn(6, 3).T,
    "e.empty": torch.zeros(0, 4),
    "f.flags": torch.tensor([True, False, True]),
    "g.brain": torch.randn(3, 3, dtype=torch.bfloat16),
    "h.bytes": torch.arange(5, dtype=torch.uint8),
}


@pytest.mark.parametrize("piece", [1, 4, 1 << 22])
def test_the_file_is_that_of_safetensors(
    piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "_PIECE", piece)
    done: list[int] = []
    write_safetensors(tmp_path / "own", TENSORS, advance=done.append)
    contiguous = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    save_file(contiguous, tmp_path / "theirs")
    read, expected = load_file(tmp_path / "own"), load_file(tmp_path / "theirs")
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    assert sum(done) == stored_bytes(TENSORS)
    assert (tmp_path / "own").stat().st_size == (tmp_path / "theirs").stat().st_size


def test_only_floating_point_tensors_change_their_dtype(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "half", TENSORS, dtype=torch.float16)
    for name, tensor in load_file(tmp_path / "half").items():
        expected = TENSORS[name]
        expected = expected.half() if expected.is_floating_point() else expected
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected)


def test_numbers_that_a_dtype_cannot_hold_are_refused(tmp_path: Path) -> None:
    large = {"w": torch.tensor([1.0, -1e6])}
    write_safetensors(tmp_path / "wide", large, dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"w has values up to 1e\+06, too large for float16"):
        write_safetensors(tmp_path / "half", large, dtype=torch.float16)
    with pytest.raises(CheckpointError, match="w holds values that are not finite"):
        write_safetensors(tmp_path / "nan", {"w": torch.tensor([float("nan")])})


def test_the_fingerprint_depends_on_content_and_not_on_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = fingerprint_of(TENSORS)
    monkeypatch.setattr(tensor_files, "_PIECE", 2)
    assert fingerprint_of(dict(reversed(TENSORS.items()))) == whole
    changed = {**TENSORS, "c.table": TENSORS["c.table"] + 1}
    reshaped = {**TENSORS, "c.table": TENSORS["c.table"].reshape(4, 5)}
    renamed = {("z" if name == "c.table" else name): each for name, each in TENSORS.items()}
    assert len({whole, *map(fingerprint_of, (changed, reshaped, renamed))}) == 4


def test_the_fingerprint_of_a_rounded_tensor_is_that_after_rounding() -> None:
    rounded = {
        name: tensor.bfloat16().float() if tensor.is_floating_point() else tensor
        for name, tensor in TENSORS.items()
    }
    found = fingerprint_of(TENSORS, stored=torch.bfloat16, loaded=torch.float32)
    assert found == fingerprint_of(rounded)
