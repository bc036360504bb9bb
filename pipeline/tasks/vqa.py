"""Visual question answering: a short open answer, scored by the rule of ten annotators."""

from __future__ import annotations

import random
from collections.abc import Sequence

from data_prep.schema import Answer, Sample
from model.generation import GenerationOptions
from model.ofa.config import OFAConfig
from model.tokenizer import OFATokenizer
from pipeline.errors import DataError
from pipeline.evaluation.vqa import answer_accuracy
from pipeline.tasks.base import Prediction, spoken_answer

_LONGEST_ANSWER = 16


class VQA:
    """Questions about an image."""

    name = "vqa"
    metric = "vqa/accuracy"

    def target_ids(
        self,
        sample: Sample,
        tokenizer: OFATokenizer,
        config: OFAConfig,
        image_size: int,
        rng: random.Random | None = None,
    ) -> list[int]:
        """The answer that most annotators gave."""
        return tokenizer.encode(f" {_favourite(sample).text}")

    def confidence(self, sample: Sample) -> float:
        """The soft score of the answer that is taught."""
        return _favourite(sample).confidence

    def options(
        self, beam_size: int, tokenizer: OFATokenizer, config: OFAConfig, image_size: int
    ) -> GenerationOptions:
        """Any short text. Sums of log-probabilities are compared, as the reference does."""
        return GenerationOptions(
            beam_size=beam_size, max_length=_LONGEST_ANSWER, normalize_scores=False
        )

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


def _favourite(sample: Sample) -> Answer:
    if not sample.answers:
        raise DataError(f"sample {sample.uid!r} has no answer to teach")
    return sample.answers[0]
