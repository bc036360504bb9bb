"""VQA's rule of ten annotators and its normalisation of answers."""

from __future__ import annotations

import pytest

from pipeline.evaluation.vqa import answer_accuracy, normalize_answer


def _by_leaving_out(answer: str, humans: list[str]) -> float:
    """The rule as it is defined, annotator by annotator."""
    total = 0.0
    for place in range(len(humans)):
        others = humans[:place] + humans[place + 1 :]
        total += min(1.0, sum(other == answer for other in others) / 3)
    return total / len(humans)


@pytest.mark.parametrize("agreeing", range(11))
def test_accuracy_equals_leaving_out_one_annotator_at_a_time(agreeing: int) -> None:
    humans = ["red"] * agreeing + ["blue"] * (10 - agreeing)
    counts = [(text, humans.count(text)) for text in dict.fromkeys(humans)]
    assert answer_accuracy("red", counts) == pytest.approx(_by_leaving_out("red", humans))


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1)])
def test_accuracy_of_the_usual_counts(agreeing: int, expected: float) -> None:
    assert answer_accuracy("2", [("two", agreeing), ("3", 10 - agreeing)]) == pytest.approx(
        expected
    )


def test_no_annotators_score_nothing() -> None:
    assert answer_accuracy("red", []) == 0.0


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("The Red  car", "red car"),
        ("a\tdog\n", "dog"),
        ("two", "2"),
        ("none", "0"),
        ("t-shirt", "t shirt"),
        ("left, right", "left right"),
        ("1,000 people!", "1000 people"),
        ("3.5", "3.5"),
        ("a.m.", "am"),
        ("dont", "don't"),
        ("wouldntve", "wouldn't've"),
        ("wouldn'tve", "wouldn't've"),
        ("well", "well"),
        ("yes?", "yes"),
        ("", ""),
    ],
)
def test_normalisation(raw: str, plain: str) -> None:
    assert normalize_answer(raw) == plain
