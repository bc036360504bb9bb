"""The byte-level BPE and the symbols around it."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import CheckpointError
from model.ofa.config import VocabLayout
from model.tokenizer import (
    OFATokenizer,
    load_fairseq_tokenizer,
    load_huggingface_tokenizer,
    train_tokenizer,
)

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


def write_published(folder: Path) -> tuple[Path, Path]:
    """The test's tokenizer in both published layouts, numbered as those are."""
    TOKENIZER.save(folder / "own.json")
    content = json.loads((folder / "own.json").read_text())
    fairseq, huggingface = folder / "fairseq", folder / "huggingface"
    fairseq.mkdir()
    huggingface.mkdir()
    merges = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in content["merges"])
    # GPT-2 numbers its tokens in an order of its own; here: backwards.
    numbers = {token: n for n, token in enumerate(reversed(content["tokens"]))}
    (fairseq / "encoder.json").write_text(json.dumps(numbers))
    rows = [f"{numbers[token]} 1" for token in content["tokens"]] + ["madeupword0000 0"]
    (fairseq / "dict.txt").write_text("\n".join(rows) + "\n")
    (fairseq / "vocab.bpe").write_text(merges)
    order = ["<s>", "<pad>", "</s>", "<unk>", *content["tokens"], "madeupword0000", "<mask>"]
    ids = {token: n for n, token in enumerate(order)}
    (huggingface / "vocab.json").write_text(json.dumps(ids))
    (huggingface / "merges.txt").write_text(merges)
    return fairseq, huggingface


def test_both_published_layouts_give_the_same_tokenizer(tmp_path: Path) -> None:
    fairseq, huggingface = write_published(tmp_path)
    loaded = load_fairseq_tokenizer(fairseq)
    assert loaded.layout.text_count == TOKENIZER.layout.text_count + 1
    assert (loaded.layout.code_count, loaded.layout.bin_count) == (8192, 1000)
    assert load_huggingface_tokenizer(huggingface).digest == loaded.digest
    for text in TEXTS:
        assert loaded.encode(text) == TOKENIZER.encode(text)
    filler = loaded.layout.mask - 1
    assert loaded.decode([*loaded.encode(" red"), filler]) == " red"


def test_published_layouts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    fairseq, huggingface = write_published(tmp_path)
    (fairseq / "vocab.bpe").write_text("a b c\n")
    with pytest.raises(CheckpointError, match="not a pair"):
        load_fairseq_tokenizer(fairseq)
    (fairseq / "dict.txt").write_text("99999 1\n")
    with pytest.raises(CheckpointError, match="no token '99999'"):
        load_fairseq_tokenizer(fairseq)
    (huggingface / "vocab.json").write_text('{"<s>": 0, "<pad>": 2}')
    with pytest.raises(CheckpointError, match="special tokens"):
        load_huggingface_tokenizer(huggingface)
    (huggingface / "vocab.json").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*vocab\.json"):
        load_huggingface_tokenizer(huggingface)


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
        ("short", json.dumps({**content, "tokens": ["a", "b"]}), "2 text tokens"),
        ("twice", json.dumps({**content, "tokens": ["a"] * len(content["tokens"])}), "twice"),
        ("alien", json.dumps({**content, "merges": [["a", "zzz"]]}), "unknown tokens"),
    ):
        file = tmp_path / f"{name}.json"
        file.write_text(damaged)
        with pytest.raises(CheckpointError, match=message):
            OFATokenizer.from_file(file)
