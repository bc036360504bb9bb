"""VQA's accuracy: an answer counts in full when three of the other nine annotators gave it.

Source: Antol et al., arXiv 1505.00468, and the evaluation rules at visualqa.org: both answers are
normalised, and the accuracy is the mean over the ten sets that leave one annotator out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_GROUPED_DIGITS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've "
    "hasn't haven't he'd he'd've he's how'd how'll how's i'd've i'm i've isn't it'd it'd've "
    "it'll let's ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock "
    "oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd somebody'll "
    "somebody's someone'd someone'll someone's something'd something'll that'd that's there'd "
    "there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't "
    "what'll what're what's what've when's where'd where's where've who'd who'd've who'll "
    "who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll "
    "y'all'd've you'd you'd've you'll you're you've"
)


def _missing_apostrophes(word: str) -> list[str]:
    """Every way to write a contraction with fewer apostrophes than it has."""
    first, *rest = word.split("'")
    spellings = []
    for marks in product(("'", ""), repeat=len(rest)):
        if "" in marks:
            spellings.append(first + "".join(m + part for m, part in zip(marks, rest, strict=True)))
    return spellings


_SPELLINGS = {slip: word for word in _CONTRACTIONS.split() for slip in _missing_apostrophes(word)}


def normalize_answer(text: str) -> str:
    """Lower case, no punctuation, number words as digits, no articles, contractions spelt out.

    A mark between two words becomes a blank; one beside a blank, or any in a text with a number
    such as 1,000, vanishes.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    grouped = _GROUPED_DIGITS.search(text) is not None
    plain = text
    for mark in _MARKS:
        vanishes = grouped or f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if vanishes else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", plain).lower().split()]
    return " ".join(_SPELLINGS.get(word, word) for word in words if word not in _ARTICLES)


def answer_accuracy(answer: str, human_answers: Sequence[tuple[str, int]]) -> float:
    """Accuracy of one answer, in [0, 1].

    Args:
        answer: What the model said.
        human_answers: Distinct answers and how many annotators gave each.
    """
    said = normalize_answer(answer)
    total = sum(count for _, count in human_answers)
    agreeing = sum(count for text, count in human_answers if normalize_answer(text) == said)
    if total == 0:
        return 0.0
    # Leaving out one of the agreeing annotators leaves one vote fewer than leaving out another.
    without_agreeing = min(1.0, (agreeing - 1) / 3)
    without_other = min(1.0, agreeing / 3)
    return (agreeing * without_agreeing + (total - agreeing) * without_other) / total
