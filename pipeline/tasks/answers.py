"""Lists of the only answers that may be given to questions, as text files and as counts.

Importing this module is cheap: no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from data_prep.schema import Sample
from pipeline.errors import ConfigError

ANSWERS_FILE = "answers.json"
"""In the folder of a run whose answers are closed."""

_LONGEST = 200
"""Characters of an answer; those of VQAv2 are a few words."""


def favourites(samples: Iterable[Sample]) -> Counter[str]:
    """How many questions have each answer as the one that most annotators gave."""
    return Counter(sample.answers[0].text for sample in samples if sample.answers)


def most_frequent(counts: Counter[str], most: int, min_questions: int) -> tuple[str, ...]:
    """The answers that stay in a closed list, most frequent first, equal ones by the alphabet.

    Args:
        counts: Questions by favourite answer.
        most: Answers that stay at most.
        min_questions: Questions that an answer needs to stay.
    """
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    frequent = [text for text, count in ranked if count >= min_questions and _is_answer(text)]
    return tuple(frequent[:most])


def read_answers(path: str | Path) -> tuple[str, ...]:
    """Reads a list of answers: UTF-8, one a line, without blank lines and repeated ones.

    Raises:
        ConfigError: the file cannot be read, holds no answer, or one that is no short text.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"list of answers {path} cannot be read: {error}") from error
    lines = [line.strip() for line in text.split("\n")]
    for number, line in enumerate(lines, 1):
        if len(line) > _LONGEST:
            raise ConfigError(
                f"list of answers {path}, line {number} has {len(line)} characters: an answer has"
                f" at most {_LONGEST}"
            )
    answers = tuple(dict.fromkeys(filter(_is_answer, lines)))
    if not answers:
        raise ConfigError(f"list of answers {path} is empty: one answer a line is needed")
    return answers


def _is_answer(text: str) -> bool:
    """Whether a text can stand on a line of its own, and is short enough to be searched."""
    return 0 < len(text.strip()) <= _LONGEST and not any(mark in text for mark in "\n\r")
