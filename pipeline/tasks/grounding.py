"""Grounding: which region a text describes, answered by the four location bins of its box."""

from __future__ import annotations

import random
from collections.abc import Sequence

from data_prep.schema import Sample
from model.boxes import bins_to_box, box_to_bins
from model.generation import GenerationOptions, Hypothesis
from model.ofa.config import OFAConfig
from model.tokenizer import OFATokenizer
from pipeline.evaluation.boxes import box_accuracy, overlap
from pipeline.tasks.base import Corners, Prediction

_BINS = 4


class Grounding:
    """Referring expressions, scored by the share of boxes that overlap the true one by half."""

    name = "grounding"
    metric = "grounding/acc_at_0.5"

    def target_ids(
        self,
        sample: Sample,
        tokenizer: OFATokenizer,
        config: OFAConfig,
        image_size: int,
        rng: random.Random | None = None,
    ) -> list[int]:
        """The bins of x0, y0, x1, y1."""
        return box_ids(sample.boxes[0].box, sample, tokenizer, config, image_size)

    def shortened(self, ids: list[int], limit: int, config: OFAConfig) -> list[int]:
        """Nothing: three corners are no box."""
        return []

    def confidence(self, sample: Sample) -> float:
        """One: a box is never in doubt."""
        return 1.0

    def options(
        self, beam_size: int, tokenizer: OFATokenizer, config: OFAConfig, image_size: int
    ) -> GenerationOptions:
        """Exactly four tokens, all of them bins."""
        first = config.vocab.bin_first
        return GenerationOptions(
            beam_size=beam_size,
            max_length=_BINS,
            min_length=_BINS,
            allowed_range=(first, first + config.vocab.bin_count),
        )

    def decode(
        self,
        hypothesis: Hypothesis,
        image_wh: tuple[int, int],
        tokenizer: OFATokenizer,
        config: OFAConfig,
        image_size: int,
    ) -> Prediction:
        """The box of the four bins, cut to the image; None where a corner is missing or swapped."""
        bins = tokenizer.bins_of(hypothesis.tokens)
        box = read_box(bins, image_wh, config, image_size) if len(bins) == _BINS else None
        return Prediction(text=tokenizer.decode(hypothesis.tokens), box=box, score=hypothesis.score)

    def score(
        self, predictions: Sequence[Prediction], samples: Sequence[Sample]
    ) -> dict[str, float]:
        """Share of boxes with an overlap of at least 0.5, and the mean overlap."""
        predicted = [prediction.box for prediction in predictions]
        true = [sample.boxes[0].box for sample in samples]
        overlaps = [overlap(p, t) if p else 0.0 for p, t in zip(predicted, true, strict=True)]
        return {
            self.metric: box_accuracy(predicted, true),
            "grounding/mean_iou": sum(overlaps) / len(overlaps) if overlaps else 0.0,
        }


def box_ids(
    box: Corners, sample: Sample, tokenizer: OFATokenizer, config: OFAConfig, image_size: int
) -> list[int]:
    """Ids of the four bins of a box in the sample's stored image."""
    bins = box_to_bins(
        box,
        (sample.image.width, sample.image.height),
        image_size,
        config.max_image_size,
        config.vocab.bin_count,
    )
    return tokenizer.bin_ids(bins)


def read_box(
    bins: Sequence[int], image_wh: tuple[int, int], config: OFAConfig, image_size: int
) -> Corners | None:
    """The box in pixels of the image that four bins stand for; None where it is empty.

    Bins beyond the edge exist (the last stands for the maximum image size): such a box is cut.
    """
    width, height = image_wh
    x0, y0, x1, y1 = bins_to_box(
        bins, image_wh, image_size, config.max_image_size, config.vocab.bin_count
    )
    box = (min(x0, width), min(y0, height), min(x1, width), min(y1, height))
    return box if box[0] < box[2] and box[1] < box[3] else None
