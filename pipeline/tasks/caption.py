"""Captioning: one sentence about the whole image, scored by CIDEr-D."""

from __future__ import annotations

import random
from collections.abc import Sequence

from data_prep.instructions import caption_target
from data_prep.schema import Sample
from model.generation import GenerationOptions
from model.ofa.config import OFAConfig
from model.tokenizer import OFATokenizer
from pipeline.errors import DataError
from pipeline.evaluation.cider import corpus_cider
from pipeline.tasks.base import Prediction, first_words, spoken_answer

_LONGEST_CAPTION = 60
_REPEAT_FREE = 3


class Caption:
    """Captions, without punctuation on either side of the comparison."""

    name = "caption"
    metric = "caption/cider"

    def target_ids(
        self,
        sample: Sample,
        tokenizer: OFATokenizer,
        config: OFAConfig,
        image_size: int,
        rng: random.Random | None = None,
    ) -> list[int]:
        """One of the references: the first, or with rng any."""
        if not sample.references:
            raise DataError(f"sample {sample.uid!r} has no caption to teach")
        reference = rng.choice(sample.references) if rng else sample.references[0]
        return tokenizer.encode(f" {caption_target(reference)}")

    def confidence(self, sample: Sample) -> float:
        """One: every reference is right."""
        return 1.0

    def options(
        self, beam_size: int, tokenizer: OFATokenizer, config: OFAConfig, image_size: int
    ) -> GenerationOptions:
        """Any sentence that repeats no three words."""
        return GenerationOptions(
            beam_size=beam_size,
            max_length=_LONGEST_CAPTION,
            no_repeat_ngram_size=_REPEAT_FREE,
        )

    shortened = staticmethod(first_words)
    decode = staticmethod(spoken_answer)

    def score(
        self, predictions: Sequence[Prediction], samples: Sequence[Sample]
    ) -> dict[str, float]:
        """CIDEr-D with the document frequencies of the scored samples' own references."""
        mean, _ = corpus_cider(
            [caption_target(prediction.text or "") for prediction in predictions],
            [[caption_target(text) for text in sample.references] for sample in samples],
        )
        return {self.metric: mean}
