"""CIDEr-D beyond its golden values."""

from __future__ import annotations

import pytest

from pipeline.evaluation.cider import CiderD, corpus_cider

REFERENCES = [["a red circle on the left side"], ["two blue squares in a row"], ["one small dog"]]


def test_a_perfect_caption_scores_ten_and_a_foreign_one_nothing() -> None:
    scorer = CiderD(REFERENCES)
    assert scorer.score(REFERENCES[0][0], REFERENCES[0]) == pytest.approx(10.0)
    assert scorer.score("green trees everywhere", REFERENCES[0]) == 0.0


def test_repeating_a_phrase_is_punished() -> None:
    scorer = CiderD(REFERENCES)
    once = scorer.score("a red circle", REFERENCES[0])
    assert scorer.score("a red circle a red circle a red circle", REFERENCES[0]) < once


def test_no_captions_score_nothing() -> None:
    assert corpus_cider([], []) == (0.0, [])
    assert CiderD(REFERENCES).score("a red circle", []) == 0.0
