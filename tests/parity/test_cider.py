"""CIDEr-D of the reference's scorer, and its rule for boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.instructions import caption_target
from pipeline.evaluation.boxes import box_accuracy, overlap
from pipeline.evaluation.cider import CiderD, corpus_cider

FOLDER = Path(__file__).parent / "fixtures" / "text"
GOLDEN: dict[str, Any] = json.loads((FOLDER / "cider.json").read_text(encoding="utf-8"))
BOXES: dict[str, Any] = json.loads((FOLDER / "boxes.json").read_text(encoding="utf-8"))["iou"]


def test_cider_with_frequencies_of_the_corpus_itself() -> None:
    mean, scores = corpus_cider(GOLDEN["hypotheses"], GOLDEN["references"])
    assert mean == pytest.approx(GOLDEN["ciderD_corpus"]["mean"], rel=1e-9)
    assert scores == pytest.approx(GOLDEN["ciderD_corpus"]["scores"], rel=1e-9, abs=1e-12)


def test_cider_with_frequencies_of_another_corpus() -> None:
    expected = GOLDEN["ciderD_cached"]
    scorer = CiderD(GOLDEN["references"][: expected["df_from_first_n_reference_sets"]])
    scores = [
        scorer.score(hypothesis, references)
        for hypothesis, references in zip(GOLDEN["hypotheses"], GOLDEN["references"], strict=True)
    ]
    assert scores == pytest.approx(expected["scores"], rel=1e-9, abs=1e-12)


def test_captions_lose_their_punctuation() -> None:
    for raw, plain in GOLDEN["punctuation_removal"].items():
        assert caption_target(raw).split() == plain.split()


@pytest.mark.parametrize(("threshold", "field"), [(0.5, "acc_0_5"), (0.3, "acc_0_3")])
def test_hits_equal_the_reference(threshold: float, field: str) -> None:
    hits = [
        float(overlap(said, true) >= threshold)
        for said, true in zip(BOXES["hyps"], BOXES["refs"], strict=True)
    ]
    assert hits == BOXES[field]
    mean = sum(BOXES[field]) / len(BOXES[field])
    assert box_accuracy(BOXES["hyps"], BOXES["refs"], threshold) == pytest.approx(mean)
