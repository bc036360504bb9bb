"""What is no checkpoint, or no checkpoint of this model, is refused in one line that says why."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.errors import CheckpointError
from model.layouts.reading import open_checkpoint
from tests.support.foreign_checkpoints import (
    fairseq_settings,
    golden_tensors,
    huggingface_settings,
    huggingface_tensors,
    write_fairseq,
    write_huggingface,
)


def refusal(place: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(place))
    message = str(caught.value)
    assert "\n" not in message
    return message


# Files that are no checkpoint


@pytest.mark.parametrize("share", [0.999, 0.5, 0.01, 0.0])
def test_a_truncated_file_is_refused(share: float, tmp_path: Path) -> None:
    file = write_fairseq(tmp_path / "micro.pt")
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    assert refusal(file) == f"{file} is damaged, or not a file of torch.save"


def test_a_truncated_shard_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_huggingface(tmp_path / "hf", safetensors=True, shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert refusal(folder).startswith(f"{shard} is not a readable safetensors file")
    shard.unlink()
    assert refusal(folder) == f"{shard} is missing; model.safetensors.index.json names it"


def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    folder = write_huggingface(tmp_path / "hf", shards=2)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(re.sub("pytorch_model-00001", "../pytorch_model-00001", index.read_text()))
    assert "is not the name of a file beside it" in refusal(folder)


def test_other_things_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.pt") == f"no checkpoint at '{tmp_path / 'absent.pt'}'"
    assert "is no checkpoint: give a file of fairseq" in refusal(tmp_path)
    plain = tmp_path / "state.pt"
    torch.save(golden_tensors(), plain)
    assert "is not in fairseq's layout: it has no 'model'" in refusal(plain)
    torch.save({"model": {"a": torch.zeros(1)}}, plain)
    assert "is no OFA checkpoint: it has no encoder.embed_tokens.weight" in refusal(plain)
    torch.save({"model": {"a": 1}}, plain)
    assert "'a' is not a tensor" in refusal(plain)
    text = tmp_path / "notes.pt"
    text.write_text("no checkpoint")
    assert "is damaged, or not a file of torch.save" in refusal(text)
    folder = write_huggingface(tmp_path / "hf")
    (folder / "pytorch_model.bin").unlink()
    assert "has no weights" in refusal(folder)


class _RunsCode:
    """What a hostile file would hold: unpickling it runs a shell command."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._file}",)


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("place", ["extra_state", "args", "model"])
def test_a_pickle_that_would_run_code_does_not(
    place: str, old_format: bool, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    hostile = _RunsCode(trace)
    content = {"model": {"a": hostile}} if place == "model" else {place: hostile}
    file = write_fairseq(tmp_path / "evil.pt", old_format=old_format, **content)
    message = refusal(file)
    assert message.startswith(f"{file} is refused: it holds {os.system.__module__}.system")
    assert not trace.exists()
    # The file does what the test says it would, where pickles are trusted.
    torch.load(file, weights_only=False)
    assert trace.exists()


def test_a_pickled_shard_that_would_run_code_does_not(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    folder = write_huggingface(tmp_path / "hf", shards=2)
    torch.save({"a": _RunsCode(trace)}, folder / "pytorch_model-00002-of-00002.bin")
    assert "is refused: it holds" in refusal(folder)
    assert not trace.exists()


def test_even_harmless_objects_of_other_packages_are_refused_by_name(tmp_path: Path) -> None:
    file = write_fairseq(tmp_path / "tuned.pt", best=np.float64(0.5))
    message = refusal(file)
    assert "multiarray.scalar" in message
    assert "numpy.dtype" in message
    assert message.endswith("save its 'cfg' or 'args' and its 'model' alone")


# Tensors that do not fit


def test_missing_unexpected_and_misshaped_keys_are_named(tmp_path: Path) -> None:
    tensors = golden_tensors()
    del tensors["decoder.layers.1.encoder_attn.q_proj.weight"]
    tensors["encoder.layers.0.adapter.weight"] = torch.zeros(1)
    tensors["encoder.layers.0.fc2.weight"] = torch.zeros(64, 255, dtype=torch.float16)
    message = refusal(write_fairseq(tmp_path / "micro.pt", tensors))
    assert "decoder.layers.1.encoder_attn.q_proj.weight is missing" in message
    assert "encoder.layers.0.adapter.weight is unexpected" in message
    assert "encoder.layers.0.fc2.weight is [64, 255] instead of [64, 256]" in message
    assert "more" not in message
    for index in range(5):
        tensors[f"encoder.prompt.{index}"] = torch.zeros(1)
    message = refusal(write_fairseq(tmp_path / "micro.pt", tensors))
    assert message.endswith("and 5 more")


def test_keys_are_named_as_the_file_has_them(tmp_path: Path) -> None:
    tensors = huggingface_tensors()
    del tensors["decoder.layers.1.cross_attn.q_proj.weight"]
    message = refusal(write_huggingface(tmp_path / "hf", tensors))
    assert message.endswith("decoder.layers.1.cross_attn.q_proj.weight is missing")


def test_declared_sizes_win_over_those_of_tensors(tmp_path: Path) -> None:
    settings = {**fairseq_settings(), "decoder_layers": 3}
    message = refusal(write_fairseq(tmp_path / "micro.pt", settings=settings))
    assert "decoder.layers.2.self_attn" in message
    settings = {**fairseq_settings(), "encoder_attention_heads": 5}
    assert "64 is no multiple of 5" in refusal(write_fairseq(tmp_path / "b.pt", settings=settings))
    settings = {**fairseq_settings(), "num_bins": 400}
    assert "369 ids are too few" in refusal(write_fairseq(tmp_path / "c.pt", settings=settings))
    settings = {**fairseq_settings(), "encoder_layers": "many"}
    assert "'many', no whole number" in refusal(write_fairseq(tmp_path / "d.pt", settings=settings))


def test_integers_are_no_weights(tmp_path: Path) -> None:
    tensors = golden_tensors()
    tensors["encoder.layers.0.fc2.bias"] = torch.zeros(64, dtype=torch.int8)
    message = refusal(write_fairseq(tmp_path / "micro.pt", tensors))
    assert "encoder.layers.0.fc2.bias is torch.int8 instead of torch.float32" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [("attn_scale_factor", 1.0), ("activation_fn", "relu"), ("entangle_position_embedding", True)],
)
def test_models_that_compute_otherwise_are_refused(
    name: str, value: object, tmp_path: Path
) -> None:
    file = write_fairseq(tmp_path / "micro.pt", settings={**fairseq_settings(), name: value})
    assert name in refusal(file)


def test_the_older_switch_against_entangled_positions_is_known(tmp_path: Path) -> None:
    older = {"entangle_position_embedding": True, "disable_entangle": True}
    open_checkpoint(str(write_fairseq(tmp_path / "m.pt", settings=fairseq_settings() | older)))
    settings = {**huggingface_settings(), "normformer": False}
    assert "normformer is False" in refusal(write_huggingface(tmp_path / "h", settings=settings))


def test_too_long_image_tables_are_misshaped(tmp_path: Path) -> None:
    tensors = golden_tensors()
    name = "encoder.embed_image_positions.weight"
    tensors[name] = torch.zeros(2000, 64)
    message = refusal(write_fairseq(tmp_path / "micro.pt", tensors))
    assert f"{name} is [2000, 64] instead of [1765, 64]" in message


def test_an_untied_model_is_refused(tmp_path: Path) -> None:
    tensors = golden_tensors()
    tensors["decoder.output_projection.weight"] = torch.zeros(369, 64, dtype=torch.float16)
    message = refusal(write_fairseq(tmp_path / "micro.pt", tensors))
    assert "decoder.output_projection.weight differs from encoder.embed_tokens.weight" in message
