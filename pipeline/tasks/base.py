"""The protocol of a task, and what a prediction is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from data_prep.schema import Sample
from model.constraints import Constraint
from model.generation import GenerationOptions, Hypothesis
from model.ofa.config import OFAConfig
from model.tokenizer import OFATokenizer
from pipeline.errors import ConfigError

Corners = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the image that was given, not of the resized one."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One answer of a model; what a task does not produce is None or empty."""

    text: str | None
    """The answer in words; for boxes, the location symbols as they were said."""
    box: Corners | None
    """Grounding's box; None where no whole box was said."""
    score: float
    """Score of the hypothesis: mean log-probability of a token unless the search says otherwise."""
    objects: tuple[tuple[str, Corners], ...] = ()
    """Detection's labels and boxes."""


class Task(Protocol):
    """Everything about a task that is not the model: target, search, reading and score.

    The instruction is rendered in data preparation and travels with the sample.
    """

    @property
    def name(self) -> str:
        """Name in samples, recipes and metric names."""
        ...

    @property
    def metric(self) -> str:
        """The headline among the metrics of `score`."""
        ...

    def target_ids(
        self,
        sample: Sample,
        tokenizer: OFATokenizer,
        config: OFAConfig,
        image_size: int,
        rng: random.Random | None = None,
    ) -> list[int]:
        """Ids that training teaches for a sample, without bos and eos.

        Args:
            sample: One of this task.
            tokenizer: The base's.
            config: The base's; its bins and maximum image size place boxes.
            image_size: Side in pixels of the square that the model sees.
            rng: Chooses among several right targets; None takes the first.

        Raises:
            DataError: the sample has no target.
        """
        ...

    def shortened(self, ids: list[int], limit: int, config: OFAConfig) -> list[int]:
        """What is taught of a target that is longer than a limit; empty where no part is right.

        Args:
            ids: What target_ids gave.
            limit: Ids that are kept at most.
            config: The base's.
        """
        ...

    def confidence(self, sample: Sample) -> float:
        """Weight of the sample in the loss, in (0, 1]."""
        ...

    def options(
        self, beam_size: int, tokenizer: OFATokenizer, config: OFAConfig, image_size: int
    ) -> GenerationOptions:
        """How an answer is searched: lengths and the tokens that are allowed."""
        ...

    def decode(
        self,
        hypothesis: Hypothesis,
        image_wh: tuple[int, int],
        tokenizer: OFATokenizer,
        config: OFAConfig,
        image_size: int,
    ) -> Prediction:
        """Reads a hypothesis; image_wh is the given image's width and height in pixels."""
        ...

    def score(
        self, predictions: Sequence[Prediction], samples: Sequence[Sample]
    ) -> dict[str, float]:
        """Metrics named `<task>/<metric>`, in [0, 1] except CIDEr, over predictions and samples."""
        ...


def first_words(ids: list[int], limit: int, config: OFAConfig) -> list[int]:
    """`Task.shortened` of the tasks that answer in words: the beginning."""
    return ids[:limit]


def spoken_answer(
    hypothesis: Hypothesis,
    image_wh: tuple[int, int],
    tokenizer: OFATokenizer,
    config: OFAConfig,
    image_size: int,
) -> Prediction:
    """`Task.decode` of the tasks that answer in words: without specials and outer blanks."""
    text = tokenizer.decode(hypothesis.tokens).strip()
    return Prediction(text=text, box=None, score=hypothesis.score)


def constraint_of(
    task: Task, tokenizer: OFATokenizer, config: OFAConfig, image_size: int
) -> Constraint:
    """What the search of a task's answers is held to, for training to be held to the same.

    Raises:
        ConfigError: nothing; its answers are open.
    """
    options = task.options(1, tokenizer, config, image_size)
    constraint = options.trie or options.allowed_range
    if constraint is None:
        raise ConfigError(
            f"training.constrain_loss names {task.name!r}, whose answers may hold any token"
        )
    return constraint
