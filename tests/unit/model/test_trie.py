"""Which tokens may follow, when only these answers are allowed."""

from __future__ import annotations

import pytest
import torch

from model.trie import Trie

ANSWERS = [[5], [5, 6], [7, 8, 9]]


def test_following_walks_the_answers() -> None:
    trie = Trie(ANSWERS)
    assert sorted(trie.following([])) == [5, 7]
    assert sorted(trie.following([5])) == [2, 6]
    assert trie.following([5, 6]) == [2]
    assert trie.following([5, 2]) == []
    assert trie.following([8]) == []
    assert (trie.shortest, trie.longest) == (2, 4)


def test_mask_starts_behind_the_decoder_prompt() -> None:
    mask = Trie(ANSWERS).mask(torch.tensor([[1, 5, 6, 2, 1], [1, 1, 1, 1, 1]]), 10)
    assert not mask[0, 0].any()
    assert mask[0, 1].nonzero().flatten().tolist() == [5, 7]
    assert mask[0, 2].nonzero().flatten().tolist() == [2, 6]
    assert mask[0, 3].nonzero().flatten().tolist() == [2]
    assert mask[0, 4].all()


@pytest.mark.parametrize("answers", [[], [[5, 2]]])
def test_impossible_answers_are_refused(answers: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="answer"):
        Trie(answers)
