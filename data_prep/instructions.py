"""Text clean-up and the instruction that each task puts before the model.

The exact characters matter, leading blanks included: a frozen base was trained on these strings,
so one blank more or less gives other token ids. They are checked against fixtures taken from the
original implementation (tests/parity/test_instructions.py).
"""

import re
import string

TASKS = ("caption", "vqa", "grounding", "entailment", "detection")
"""Every task that a sample can belong to."""

QUESTION_WORDS = 128
"""Words that are kept of a question."""
EXPRESSION_WORDS = 80
"""Words that are kept of a referring expression, a hypothesis or a premise."""

_LEADING_MARKS = ",.!?*#:;~"
_BLANK_RUN = re.compile(r"\s{2,}")
_WORD_JOINS = str.maketrans("-/", "  ")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _normalize(text: str, max_words: int, *, name_persons: bool) -> str:
    # Marks are stripped before blanks, so a mark behind a blank stays: "! .x" gives ".x".
    text = text.lower().lstrip(_LEADING_MARKS).translate(_WORD_JOINS)
    if name_persons:
        text = text.replace("<person>", "person")
    # A lone tab or newline between words is kept; only runs of white space become one blank.
    text = _BLANK_RUN.sub(" ", text).rstrip("\n").strip(" ")
    words = text.split(" ")
    return " ".join(words[:max_words]) if len(words) > max_words else text


def pre_question(text: str, max_words: int = QUESTION_WORDS) -> str:
    """Normalises a question: lower case, no leading marks, no '-' and '/', at most max_words."""
    return _normalize(text, max_words, name_persons=False)


def pre_caption(text: str, max_words: int = EXPRESSION_WORDS) -> str:
    """Normalises an expression, hypothesis or premise; like a question, and '<person>' is named."""
    return _normalize(text, max_words, name_persons=True)


def caption_target(text: str, max_words: int | None = None) -> str:
    """The caption that a model learns to say: punctuation deleted, case kept, cut to max_words."""
    words = text.translate(_NO_PUNCTUATION).strip().split()
    return " ".join(words[:max_words])


def source_text(task: str, text: str | None = None, premise: str | None = None) -> str:
    """Renders the instruction of one sample from its raw text.

    Args:
        task: One of TASKS.
        text: The raw question (vqa), expression (grounding) or hypothesis (entailment); unused by
            the tasks that ask about the whole image.
        premise: A caption of the image for entailment; None asks about the image alone.

    Returns:
        The source text with its leading blank, cleaned up and cut as the original does.

    Raises:
        ValueError: The task is unknown, or it needs a text and has none.
    """
    if task == "caption":
        return " what does the image describe?"
    if task == "detection":
        return " what are the objects in the image?"
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; known are {', '.join(TASKS)}")
    if text is None:
        raise ValueError(f"task {task!r} needs a text")
    if task == "vqa":
        question = pre_question(text)
        return f" {question}" if question.endswith("?") else f" {question}?"
    cleaned = pre_caption(text)
    if task == "grounding":
        return f' which region does the text " {cleaned} " describe?'
    if premise is None:
        return f' does the image describe " {cleaned} "?'
    return f' can image and text1 " {pre_caption(premise)} " imply text2 " {cleaned} "?'
