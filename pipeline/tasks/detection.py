"""Detection: every object of the image from left to right, four bins and a label each.

A dense target that teaches a backbone to see; scored so that a pretraining run can be followed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from data_prep.schema import Sample
from model.generation import GenerationOptions, Hypothesis
from model.ofa.config import OFAConfig
from model.tokenizer import OFATokenizer
from pipeline.evaluation.boxes import overlap
from pipeline.tasks.base import Corners, Prediction
from pipeline.tasks.grounding import box_ids, read_box

_LONGEST_LIST = 200
_BINS = 4
_HIT = 0.5


class Detection:
    """Objects with their boxes, scored by F1 of boxes that fit and are named right."""

    name = "detection"
    metric = "detection/f1_at_0.5"

    def target_ids(
        self,
        sample: Sample,
        tokenizer: OFATokenizer,
        config: OFAConfig,
        image_size: int,
        rng: random.Random | None = None,
    ) -> list[int]:
        """For each object in the sample's order: its four bins and its label."""
        ids: list[int] = []
        for entry in sample.boxes:
            ids += box_ids(entry.box, sample, tokenizer, config, image_size)
            ids += tokenizer.encode(f" {entry.label}")
        return ids

    def shortened(self, ids: list[int], limit: int, config: OFAConfig) -> list[int]:
        """The first objects that fit whole."""
        first_bin = config.vocab.bin_first
        begins = [
            place
            for place, token in enumerate(ids)
            if token >= first_bin and (place == 0 or ids[place - 1] < first_bin)
        ]
        return ids[: max(place for place in begins if place <= limit)]

    def confidence(self, sample: Sample) -> float:
        """One: the objects are never in doubt."""
        return 1.0

    def options(
        self, beam_size: int, tokenizer: OFATokenizer, config: OFAConfig, image_size: int
    ) -> GenerationOptions:
        """Any sequence; a beam gains nothing on long lists, so it is one wide."""
        return GenerationOptions(
            beam_size=1, max_length=min(_LONGEST_LIST, config.max_positions - 1)
        )

    def decode(
        self,
        hypothesis: Hypothesis,
        image_wh: tuple[int, int],
        tokenizer: OFATokenizer,
        config: OFAConfig,
        image_size: int,
    ) -> Prediction:
        """The objects that were said whole; a label without four bins in front is left out."""
        objects: list[tuple[str, Corners]] = []
        bins: list[int] = []
        words: list[int] = []
        for token in [*hypothesis.tokens, config.vocab.bin_first]:
            if token >= config.vocab.bin_first:
                if words:
                    box = (
                        read_box(bins, image_wh, config, image_size) if len(bins) == _BINS else None
                    )
                    if box:
                        objects.append((tokenizer.decode(words).strip(), box))
                    bins, words = [], []
                bins += tokenizer.bins_of([token])
            elif token >= config.vocab.text_first:
                words.append(token)
        return Prediction(
            text=tokenizer.decode(hypothesis.tokens).strip(),
            box=None,
            score=hypothesis.score,
            objects=tuple(objects),
        )

    def score(
        self, predictions: Sequence[Prediction], samples: Sequence[Sample]
    ) -> dict[str, float]:
        """Harmonic mean of precision and recall over all objects of all samples."""
        hits = said = there = 0
        for prediction, sample in zip(predictions, samples, strict=True):
            said += len(prediction.objects)
            there += len(sample.boxes)
            hits += _matches(prediction, sample)
        return {self.metric: 2 * hits / (said + there) if said + there else 0.0}


def _matches(prediction: Prediction, sample: Sample) -> int:
    """Objects named right whose box overlaps one of that name, each true object taken once."""
    left = list(sample.boxes)
    hits = 0
    for label, box in prediction.objects:
        for index, entry in enumerate(left):
            if entry.label == label and overlap(box, entry.box) >= _HIT:
                del left[index]
                hits += 1
                break
    return hits
