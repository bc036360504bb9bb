"""Closed answers: which there are, how they are searched, and what a file of them may hold."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from model.ofa.config import OFAConfig
from model.tokenizer import OFATokenizer, train_tokenizer
from pipeline.errors import ConfigError
from pipeline.tasks.answers import most_frequent, read_answers
from pipeline.tasks.registry import get_task
from pipeline.tasks.vqa import answer_ids

ANSWERS = ("yes", "two red circles", "red")


@pytest.fixture(scope="module")
def tokenizer() -> OFATokenizer:
    texts = [" yes", " two", " red", " circles", " blue"] * 3
    return train_tokenizer(texts, text_count=280, bin_count=8, code_count=4)


@pytest.fixture(scope="module")
def config(tokenizer: OFATokenizer) -> OFAConfig:
    return OFAConfig(
        name="test",
        d_model=8,
        ffn_dim=8,
        encoder_layers=1,
        decoder_layers=1,
        attention_heads=1,
        resnet_blocks=(1, 1, 1),
        vocab=tokenizer.layout,
    )


def test_frequent_answers_stay_and_equal_ones_stand_by_the_alphabet() -> None:
    counts = Counter({"red": 5, "b": 3, "a": 3, "rare": 1, " ": 9, "two\nlines": 9, "x" * 201: 9})
    assert most_frequent(counts, 10, 2) == ("red", "a", "b")
    assert most_frequent(counts, 2, 1) == ("red", "a")
    assert most_frequent(counts, 10, 6) == ()


def test_a_file_has_one_answer_a_line(tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    path.write_text("red\n\n two\u2028words \r\nred\nçà\n", encoding="utf-8")
    assert read_answers(path) == ("red", "two\u2028words", "çà")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00", None])
def test_a_file_without_answers_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "answers.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"list of answers .*answers\.txt (is empty|cannot be)"):
        read_answers(path)


def test_a_line_that_is_no_short_answer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    path.write_text("red\n" + "blue " * 50 + "\n")
    with pytest.raises(ConfigError, match=r"line 2 has 249 characters: an answer has at most 200"):
        read_answers(path)


def test_a_closed_search_says_the_list_and_nothing_else(
    tokenizer: OFATokenizer, config: OFAConfig
) -> None:
    options = get_task("vqa", ANSWERS).options(5, tokenizer, config, 64)
    assert options.trie is not None
    assert options.beam_size == 3
    for ids in answer_ids(ANSWERS, tokenizer):
        for place, token in enumerate([*ids, 2]):
            assert token in options.trie.following(ids[:place])
    assert options.trie.following(tokenizer.encode(" blue")) == []
    assert options.max_length >= options.trie.longest
    # Thousands of answers are encoded once.
    assert get_task("vqa", ANSWERS).options(2, tokenizer, config, 64).trie is options.trie


def test_other_tasks_have_nothing_to_do_with_answers() -> None:
    assert get_task("caption", ANSWERS) is get_task("caption")
    assert get_task("vqa", ()) is get_task("vqa")
