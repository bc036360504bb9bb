"""The byte-level BPE and the symbols around it."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import CheckpointError
from model.ofa.config import VocabLayout
from model.tokenizer import OFATokenizer, train_tokenizer

TEXTS = [
    " a small red circle and a big blue square",
    ' which region does the text " the red circle " describe?',
    " what color is the big square?",
] * 4


def make_tokenizer(text_count: int = 320) -> OFATokenizer:
    return train_tokenizer(TEXTS, text_count=text_count, bin_count=48, code_count=2)


TOKENIZER = make_tokenizer()


def test_layout_says_what_came_out() -> None:
    layout = TOKENIZER.layout
    assert layout == VocabLayout(text_count=layout.text_count, code_count=2, bin_count=48)
    assert 256 < layout.text_count <= 320
    wide = make_tokenizer(5000).layout
    assert wide.text_count < 5000
    assert wide.size == 4 + wide.text_count + 1 + 2 + 48


def test_frequent_words_are_one_token_and_text_ids_start_at_four() -> None:
    ids = TOKENIZER.encode(" red circle")
    assert len(ids) == 2
    assert all(4 <= token < TOKENIZER.layout.mask for token in ids)


def test_a_leading_blank_makes_another_word() -> None:
    assert TOKENIZER.encode("red") != TOKENIZER.encode(" red")
    assert TOKENIZER.decode(TOKENIZER.encode("red")) == "red"


@given(st.text())
def test_every_text_survives(text: str) -> None:
    # Symbols are not text: they come back with a single blank in front.
    if "<bin_" in text or "<code_" in text or "<mask>" in text:
        return
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_symbols() -> None:
    layout = TOKENIZER.layout
    text = "<bin_0> <bin_47> small red circle <bin_3> <mask> <code_1>"
    ids = TOKENIZER.encode(text)
    assert ids[:2] == [layout.bin_first, layout.bin_first + 47]
    assert ids[-3:] == [layout.bin_first + 3, layout.mask, layout.code_first + 1]
    assert TOKENIZER.encode(" small red circle") == ids[2:-3]
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.bins_of(ids) == [0, 47, 3]
    assert TOKENIZER.bin_ids([0, 47, 3]) == [ids[0], ids[1], ids[-3]]


@pytest.mark.parametrize("text", ["<bin_48>", "<bin_03>", "<code_2>", "<s>", "</s>", "<pad>"])
def test_what_is_no_symbol_is_text(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert all(4 <= token < TOKENIZER.layout.mask for token in ids)
    assert TOKENIZER.decode(ids) == text


def test_specials_vanish_in_decoding() -> None:
    ids = TOKENIZER.encode(" red circle")
    assert TOKENIZER.decode([0, *ids, 2, 1, 1]) == " red circle"


def test_impossible_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="bin 48 does not exist"):
        TOKENIZER.bin_ids([3, 48])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        TOKENIZER.decode([TOKENIZER.layout.size])


def test_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(path)
    loaded = OFATokenizer.from_file(path)
    assert loaded.layout == TOKENIZER.layout
    assert loaded.digest == TOKENIZER.digest
    assert loaded.encode(TEXTS[1]) == TOKENIZER.encode(TEXTS[1])
    again = tmp_path / "again.json"
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()


def test_training_is_reproducible() -> None:
    assert make_tokenizer().digest == TOKENIZER.digest
    assert make_tokenizer(300).digest != TOKENIZER.digest


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="below 256"):
        make_tokenizer(255)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(CheckpointError, match="cannot read"):
        OFATokenizer.from_file(path)
    TOKENIZER.save(path)
    content = json.loads(path.read_text())
    for name, damaged, message in (
        ("cut", path.read_text()[:100], "not JSON"),
        ("other", json.dumps({"version": "1.0"}), "not of format"),
        ("lacking", json.dumps({**content, "merges": None}), "damaged"),
        ("short", json.dumps({**content, "text_order": [0, 1]}), "2 text tokens"),
        ("twice", json.dumps({**content, "text_order": [0] * len(content["text_order"])}), "twice"),
    ):
        file = tmp_path / f"{name}.json"
        file.write_text(damaged)
        with pytest.raises(CheckpointError, match=message):
            OFATokenizer.from_file(file)
