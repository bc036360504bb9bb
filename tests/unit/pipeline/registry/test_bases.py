"""The base is found by what the environment says: a folder, a list by name, an id on the hub."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from model.layouts.conversion import convert
from model.layouts.reading import open_checkpoint
from model.layouts.vocabulary import demand_tokenizer
from pipeline.errors import RegistryError
from pipeline.registry.artifact import read_record
from pipeline.registry.bases import BASE_VARIABLE, base_place, shared_base
from pipeline.registry.hub_bases import CACHE_VARIABLE
from pipeline.registry.predictor import Predictor
from tests.support.foreign_checkpoints import write_huggingface, write_vocabulary
from tests.support.small_base import small_tokenizer
from tests.support.small_prompt import small_base, small_prompt

COMMIT = "0" * 40


def test_a_list_names_a_base_for_each_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ofa-one", "ofa-two"):
        small_prompt(tmp_path / f"{name}-prompt", small_base(tmp_path / name, name=name))
    places = [f"{name} = {tmp_path / name}" for name in ("ofa-one", "ofa-two")]
    monkeypatch.setenv(BASE_VARIABLE, ", ".join(places))
    predictors = [Predictor.from_folder(tmp_path / f"{n}-prompt") for n in ("ofa-one", "ofa-two")]
    names = [predictor.base.model.config.name for predictor in predictors]
    assert names == ["ofa-one", "ofa-two"]
    record = read_record(tmp_path / "ofa-one-prompt")
    monkeypatch.setenv(BASE_VARIABLE, "ofa-two=/elsewhere")
    assert base_place(record) == "ofa-one"
    monkeypatch.setenv(BASE_VARIABLE, "ofa-two=/elsewhere,ofa-one=")
    with pytest.raises(RegistryError, match="'ofa-one=' is not name=place"):
        base_place(record)


def test_another_tokenizer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_prompt(tmp_path / "prompt", small_base(tmp_path / "base"))
    monkeypatch.setenv(BASE_VARIABLE, str(tmp_path / "base"))
    other = small_tokenizer(["entirely other words, many of them, so that no two are alike"])
    other.save(tmp_path / "base" / "tokenizer.json")
    with pytest.raises(RegistryError, match="was made with tokenizer sha256:"):
        Predictor.from_folder(tmp_path / "prompt")


def test_a_base_on_the_hub_is_converted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hub" / "models--someone--ofa" / "snapshots" / COMMIT
    write_huggingface(snapshot, safetensors=True)
    write_vocabulary(snapshot, huggingface=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))

    checkpoint = open_checkpoint(str(snapshot))
    tokenizer = demand_tokenizer(snapshot, checkpoint.config.vocab)
    convert(checkpoint, tokenizer, tmp_path / "by-hand", dtype=None, advance=lambda _: None)
    loaded = shared_base("someone/ofa")
    assert loaded.fingerprint == shared_base(str(tmp_path / "by-hand")).fingerprint
    assert [path.name for path in (tmp_path / "cache" / "bases").iterdir()] == ["someone--ofa"]
    shutil.rmtree(tmp_path / "hub")
    assert shared_base("someone/ofa") is loaded
    with pytest.raises(RegistryError, match="set PREFIXWORKS_BASE"):
        shared_base("someone/absent")
