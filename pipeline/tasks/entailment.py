"""Visual entailment: whether the image supports a statement, answered by yes, no or maybe."""

from __future__ import annotations

import random
from collections.abc import Sequence

from data_prep.schema import ENTAILMENT_LABELS, Sample
from model.generation import GenerationOptions
from model.ofa.config import OFAConfig
from model.tokenizer import OFATokenizer
from model.trie import Trie
from pipeline.tasks.base import Prediction, first_words, spoken_answer


class Entailment:
    """Statements about an image, scored by the share of right labels."""

    name = "entailment"
    metric = "entailment/accuracy"

    def target_ids(
        self,
        sample: Sample,
        tokenizer: OFATokenizer,
        config: OFAConfig,
        image_size: int,
        rng: random.Random | None = None,
    ) -> list[int]:
        """The label as a word."""
        return tokenizer.encode(f" {sample.label}")

    def confidence(self, sample: Sample) -> float:
        """One: a label is never in doubt."""
        return 1.0

    def options(
        self, beam_size: int, tokenizer: OFATokenizer, config: OFAConfig, image_size: int
    ) -> GenerationOptions:
        """One of the three labels."""
        trie = Trie(tokenizer.encode(f" {label}") for label in ENTAILMENT_LABELS)
        return GenerationOptions(
            beam_size=min(beam_size, len(ENTAILMENT_LABELS)),
            max_length=trie.longest,
            normalize_scores=False,
            trie=trie,
        )

    shortened = staticmethod(first_words)
    decode = staticmethod(spoken_answer)

    def score(
        self, predictions: Sequence[Prediction], samples: Sequence[Sample]
    ) -> dict[str, float]:
        """Share of right labels."""
        hits = [p.text == s.label for p, s in zip(predictions, samples, strict=True)]
        return {self.metric: sum(hits) / len(hits) if hits else 0.0}
