"""Text clean-up and instructions equal the original implementation's, character by character."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.instructions import caption_target, pre_caption, pre_question, source_text

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent / "fixtures" / "text" / "text.json").read_text(encoding="utf-8")
)
TEXTS: list[dict[str, Any]] = GOLDEN["texts"]


@pytest.mark.parametrize("golden", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize("words", [3, 20, 80, 128])
def test_clean_up(golden: dict[str, Any], words: int) -> None:
    assert pre_question(golden["text"], words) == golden[f"pre_question_{words}"]
    assert pre_caption(golden["text"], words) == golden[f"pre_caption_{words}"]


@pytest.mark.parametrize("golden", TEXTS, ids=range(len(TEXTS)))
def test_sources(golden: dict[str, Any]) -> None:
    assert source_text("vqa", golden["text"]) == golden["vqa_source"]
    assert source_text("grounding", golden["text"]) == golden["refcoco_source"]
    assert source_text("entailment", golden["text"]) == golden["snli_ve_source"]


@pytest.mark.parametrize("task", ["caption", "detection"])
def test_fixed_sources_are_the_templates(task: str) -> None:
    assert source_text(task) in GOLDEN["templates"]


def test_entailment_with_a_premise_fills_both_places() -> None:
    template = ' can image and text1 " {} " imply text2 " {} "?'
    assert template in GOLDEN["templates"]
    rendered = source_text("entailment", "Two men - outside.", premise="Men stand.")
    assert rendered == template.format("men stand.", "two men outside.")


def test_caption_target_deletes_punctuation_and_keeps_case() -> None:
    raw = "A man, riding a wave (on top) of a surf-board!  It's GREAT."
    assert caption_target(raw) == "A man riding a wave on top of a surfboard Its GREAT"
    assert caption_target(raw, 6) == "A man riding a wave on"


@pytest.mark.parametrize(("task", "text"), [("vqa", None), ("segmentation", "a dog")])
def test_impossible_requests_are_refused(task: str, text: str | None) -> None:
    with pytest.raises(ValueError, match=task):
        source_text(task, text)
