"""Foreign checkpoints make the reference's model, or are refused in one line that says why."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint import fingerprint, load_base, resolve_base
from model.errors import CheckpointError
from model.layouts.conversion import base_fingerprint, convert
from model.layouts.detection import conversion_of, is_hub_id
from model.layouts.huggingface import huggingface_name, own_name
from model.layouts.reading import Checkpoint, open_checkpoint
from model.layouts.shapes import config_of
from model.layouts.vocabulary import demand_tokenizer, find_tokenizer
from model.ofa import OFA, PRESETS, nearest_preset
from tests.support import golden_micro
from tests.support.foreign_checkpoints import (
    BINS,
    CODES,
    TEXTS,
    golden_tensors,
    huggingface_tensors,
    write_fairseq,
    write_huggingface,
    write_vocabulary,
)

LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "fairseq args": lambda folder: write_fairseq(folder / "micro.pt"),
    "fairseq cfg": lambda folder: write_fairseq(folder / "micro.pt", as_cfg=True),
    "fairseq without settings": lambda folder: write_fairseq(
        folder / "micro.pt", settings={"code_dict_size": CODES, "num_bins": BINS}
    ),
    "fairseq before torch 1.6": lambda folder: write_fairseq(folder / "m.pt", old_format=True),
    "Hugging Face pickled": lambda folder: write_huggingface(folder / "hf"),
    "Hugging Face safetensors": lambda folder: write_huggingface(folder / "hf", safetensors=True),
    "Hugging Face pickled shards": lambda folder: write_huggingface(folder / "hf", shards=3),
    "Hugging Face safetensors shards": lambda folder: write_huggingface(
        folder / "hf", safetensors=True, shards=2
    ),
}


def logits_of(model: OFA) -> Tensor:
    images, present = golden_micro.image_inputs()
    with torch.no_grad():
        return model(
            golden_micro.ids("inputs/src_tokens"),
            images,
            present,
            golden_micro.ids("inputs/prev_output_tokens"),
        )


def convert_to(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None = None) -> OFA:
    vocab = write_vocabulary(folder.parent / "vocab", huggingface=False)
    tokenizer = demand_tokenizer(vocab, checkpoint.config.vocab)
    convert(checkpoint, tokenizer, folder, dtype=dtype, advance=lambda count: None)
    return load_base(str(folder))


@pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout_makes_the_same_base(write: Callable[[Path], Path], tmp_path: Path) -> None:
    golden = golden_micro.base()
    checkpoint = open_checkpoint(str(write(tmp_path)))
    assert checkpoint.notes == ()
    vocab = checkpoint.config.vocab
    assert (vocab.text_count, vocab.code_count, vocab.bin_count) == (TEXTS, CODES, BINS)
    assert checkpoint.config.resnet_blocks == (1, 1, 1)
    assert checkpoint.config.code_grid_size == 16
    expected = fingerprint(golden)
    announced = base_fingerprint(checkpoint, dtype=None, advance=lambda count: None)
    made = convert_to(checkpoint, tmp_path / "base").freeze()
    assert fingerprint(made) == announced == expected
    assert torch.equal(logits_of(made), logits_of(golden))


def test_settings_of_fairseq_that_tensors_do_not_show(tmp_path: Path) -> None:
    config = open_checkpoint(str(write_fairseq(tmp_path / "micro.pt"))).config
    assert (config.image_size, config.max_image_size, config.name) == (64, 512, "micro")
    assert open_checkpoint(str(tmp_path / "micro.pt"), name="other").config.name == "other"


def test_the_published_dtype_can_change_and_the_fingerprint_follows(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_huggingface(tmp_path / "hf")))
    announced = base_fingerprint(checkpoint, dtype=torch.bfloat16, advance=lambda count: None)
    made = convert_to(checkpoint, tmp_path / "base", torch.bfloat16)
    assert fingerprint(made) == announced != fingerprint(golden_micro.base())
    again = open_checkpoint(str(tmp_path / "base"))
    kinds = {str(tensor.dtype) for tensor in again.tensors.values()}
    assert kinds == {"torch.bfloat16", "torch.int64"}


def test_rules_of_names_have_an_inverse() -> None:
    theirs = set(huggingface_tensors())
    assert {huggingface_name(own_name(name)) for name in theirs} == theirs
    assert {own_name(name) for name in theirs} == {
        name for name in golden_tensors() if not name.endswith(".version")
    }


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_told_from_their_tensors(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        tensors = OFA(PRESETS[name]).state_dict()
    config = config_of({}, tensors, name, tmp_path)
    assert config == PRESETS[name]
    assert nearest_preset(config) == (name, ())


def test_short_image_tables_are_extended_as_the_reference_does(tmp_path: Path) -> None:
    tensors = golden_tensors()
    names = [f"{stack}.embed_image_positions.weight" for stack in ("encoder", "decoder")]
    whole = {name: tensors[name] for name in names}
    tensors |= {name: table[:1000].clone() for name, table in whole.items()}
    file = write_fairseq(tmp_path / "micro.pt", tensors)
    checkpoint = open_checkpoint(str(file))
    assert checkpoint.notes == tuple(f"{name}: 765 rows drawn at the end of 1000" for name in names)
    made = convert_to(checkpoint, tmp_path / "base").state_dict()
    for name in names:
        assert torch.equal(made[name][:1000], whole[name][:1000].float())
        # Drawn from N(0, 1/D) with D = 64; 765 x 64 draws give the deviation to a per cent.
        assert made[name].shape == whole[name].shape
        assert float(made[name][1000:].std()) == pytest.approx(64**-0.5, rel=0.02)
    assert not torch.equal(made[names[0]][1000:], made[names[1]][1000:])
    again = open_checkpoint(str(file)).tensors
    assert all(torch.equal(again[name], checkpoint.tensors[name]) for name in names)
    # Positions that were there compute as before: the case's image has 4 x 4 features.
    model = load_base(str(tmp_path / "base")).freeze()
    assert torch.equal(logits_of(model), logits_of(golden_micro.base()))


@pytest.mark.parametrize(
    "kept", ["decoder.embed_tokens.weight", "decoder.output_projection.weight"]
)
def test_the_tied_embedding_may_have_one_name_only(kept: str, tmp_path: Path) -> None:
    names = {
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "decoder.output_projection.weight",
    }
    tensors = {
        name: tensor
        for name, tensor in huggingface_tensors().items()
        if name == kept or name not in names
    }
    checkpoint = open_checkpoint(str(write_huggingface(tmp_path / "hf", tensors, safetensors=True)))
    found = base_fingerprint(checkpoint, dtype=None, advance=lambda count: None)
    assert found == fingerprint(golden_micro.base())


def test_a_conversion_that_is_broken_off_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_fairseq(tmp_path / "micro.pt")))
    vocab = write_vocabulary(tmp_path / "vocab", huggingface=False)
    tokenizer = demand_tokenizer(vocab, checkpoint.config.vocab)
    folder = tmp_path / "bases" / "micro"

    def break_off(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, tokenizer, folder, dtype=None, advance=break_off)
    assert list(folder.parent.iterdir()) == []
    convert_to(checkpoint, folder)
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="exists; choose another folder"):
        convert(checkpoint, tokenizer, folder, dtype=torch.bfloat16, advance=lambda count: None)
    assert (folder / "model.safetensors").read_bytes() == before


# Vocabularies


def test_both_vocabularies_make_the_same_tokenizer(tmp_path: Path) -> None:
    layout = open_checkpoint(str(write_fairseq(tmp_path / "micro.pt"))).config.vocab
    fairseq = demand_tokenizer(write_vocabulary(tmp_path / "a", huggingface=False), layout)
    huggingface = demand_tokenizer(write_vocabulary(tmp_path / "b", huggingface=True), layout)
    assert fairseq.digest == huggingface.digest
    assert fairseq.layout == layout
    assert find_tokenizer(tmp_path, layout) is None
    with pytest.raises(CheckpointError, match="has no vocabulary: give --vocab"):
        demand_tokenizer(tmp_path, layout)


def test_a_vocabulary_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = write_vocabulary(tmp_path / "vocab", huggingface=False)
    with pytest.raises(CheckpointError, match=r"has 256 text tokens.* the checkpoint 50260"):
        demand_tokenizer(folder, PRESETS["ofa-base"].vocab)


# Where a base is expected


def test_a_foreign_checkpoint_is_no_base_but_says_how_to_make_one(tmp_path: Path) -> None:
    file = write_fairseq(tmp_path / "ofa_large.pt")
    command = f"prefixworks model convert {file} data/bases/ofa_large --vocab FOLDER"
    for load in (resolve_base, load_base):
        with pytest.raises(CheckpointError, match=re.escape(f"convert it once: {command}")):
            load(str(file))
    folder = write_huggingface(tmp_path / "hf")
    command = f"prefixworks model convert {folder} data/bases/hf"
    with pytest.raises(CheckpointError, match=re.escape(f"convert it once: {command}")):
        load_base(str(folder))
    with pytest.raises(CheckpointError, match="model convert OFA-Sys/OFA-base data/bases/OFA-base"):
        load_base("OFA-Sys/OFA-base")


def test_hub_ids_are_told_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bases").mkdir()
    assert is_hub_id("OFA-Sys/ofa-large")
    assert is_hub_id("OFA-Sys/ofa-large@v1.0")
    assert not is_hub_id("bases/large")
    assert not is_hub_id("./OFA-Sys/large")
    assert not is_hub_id("/OFA-Sys/large")
    assert not is_hub_id("large")
    assert conversion_of("bases/large") is None
