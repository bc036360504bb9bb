"""What an evaluation runs on and how it searches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Dataset, tasks and search of one evaluation."""

    dataset: str | None = None
    """Folder of the prepared dataset, or its location in an object store such as
    s3://bucket/path; None where the caller names it."""
    tasks: list[str] | None = None
    """Tasks to score; None scores every task of the dataset."""
    beam_size: int = 5
    """Hypotheses kept at each step of the search."""
    batch_size: int = 32
    """Samples whose answers are searched together."""
    max_samples: int | None = None
    """Samples of each task to score, evenly spread over the dataset; None scores all."""

    vqa: Literal["open", "trie", "candidates"] | None = None
    """How an answer to a question is found: any text, a search that is held to the closed answers,
    or the best of all of them, each scored. None searches the closed answers where there are
    some."""
    vqa_answers: str | None = None
    """File of the closed answers, one a line; None takes those that the run or prompt has."""

    def __post_init__(self) -> None:
        for name in ("beam_size", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(f"max_samples must be at least 1, not {self.max_samples}")
        if self.tasks is not None and not self.tasks:
            raise ValueError("tasks names no task; leave it out to score all")
        if self.vqa == "open" and self.vqa_answers is not None:
            raise ValueError(f"vqa_answers = {self.vqa_answers!r} needs vqa = trie or candidates")
