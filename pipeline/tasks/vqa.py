"""Visual question answering: a short answer, scored by the rule of ten annotators.

Answers are open, or closed to a list: then only these are searched, and taught where a question has
one of them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

from data_prep.schema import Answer, Sample
from model.generation import GenerationOptions
from model.ofa.config import OFAConfig
from model.tokenizer import OFATokenizer
from model.trie import Trie
from pipeline.errors import DataError
from pipeline.evaluation.vqa import answer_accuracy
from pipeline.tasks.base import Prediction, first_words, spoken_answer

_LONGEST_ANSWER = 16


class VQA:
    """Questions about an image."""

    name = "vqa"
    metric = "vqa/accuracy"

    def __init__(self, answers: tuple[str, ...] = ()) -> None:
        """Takes the only answers that may be given; none leaves them open."""
        self._answers = answers
        self._known = frozenset(answers)

    def target_ids(
        self,
        sample: Sample,
        tokenizer: OFATokenizer,
        config: OFAConfig,
        image_size: int,
        rng: random.Random | None = None,
    ) -> list[int]:
        """The answer that most annotators gave, of those in a closed list if it has one."""
        return tokenizer.encode(f" {self._taught(sample).text}")

    def confidence(self, sample: Sample) -> float:
        """The soft score of the answer that is taught."""
        return self._taught(sample).confidence

    def options(
        self, beam_size: int, tokenizer: OFATokenizer, config: OFAConfig, image_size: int
    ) -> GenerationOptions:
        """Any short text, or one of the list.

        Sums of log-probabilities are compared, as the reference does.
        """
        if self._answers:
            trie = _answer_trie(self._answers, tokenizer)
            return GenerationOptions(
                beam_size=min(beam_size, len(self._answers)),
                max_length=trie.longest,
                normalize_scores=False,
                trie=trie,
            )
        return GenerationOptions(
            beam_size=beam_size, max_length=_LONGEST_ANSWER, normalize_scores=False
        )

    shortened = staticmethod(first_words)
    decode = staticmethod(spoken_answer)

    def score(
        self, predictions: Sequence[Prediction], samples: Sequence[Sample]
    ) -> dict[str, float]:
        """Mean of the official accuracy."""
        scores = [
            answer_accuracy(prediction.text or "", [(a.text, a.count) for a in sample.answers])
            for prediction, sample in zip(predictions, samples, strict=True)
        ]
        return {self.metric: sum(scores) / len(scores) if scores else 0.0}

    def _taught(self, sample: Sample) -> Answer:
        if not sample.answers:
            raise DataError(f"sample {sample.uid!r} has no answer to teach")
        known = (answer for answer in sample.answers if answer.text in self._known)
        return next(known, sample.answers[0])


def answer_ids(answers: Sequence[str], tokenizer: OFATokenizer) -> list[list[int]]:
    """The ids of answers as they are taught, without bos and eos."""
    return [tokenizer.encode(f" {answer}") for answer in answers]


@lru_cache(maxsize=4)
def _answer_trie(answers: tuple[str, ...], tokenizer: OFATokenizer) -> Trie:
    # Thousands of answers are encoded for it, and each request of a prediction asks again.
    return Trie(answer_ids(answers, tokenizer))
