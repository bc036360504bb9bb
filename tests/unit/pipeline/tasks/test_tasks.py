"""What each task teaches, allows, reads and scores."""

from __future__ import annotations

import random
from typing import Any

import pytest

from data_prep.instructions import source_text
from data_prep.schema import Answer, Box, ImageFacts, Sample
from model.generation import Hypothesis
from model.ofa.config import OFAConfig
from model.tokenizer import OFATokenizer, train_tokenizer
from pipeline.errors import ConfigError, DataError
from pipeline.tasks.base import Prediction
from pipeline.tasks.registry import get_task, task_names

IMAGE_SIZE = 64
TEXTS = [" red", " blue", " small red circle", " yes", " no", " maybe", " a red circle"] * 3


@pytest.fixture(scope="module")
def tokenizer() -> OFATokenizer:
    return train_tokenizer(TEXTS, text_count=280, bin_count=65, code_count=4)


@pytest.fixture(scope="module")
def config(tokenizer: OFATokenizer) -> OFAConfig:
    return OFAConfig(
        name="test",
        d_model=8,
        ffn_dim=8,
        encoder_layers=1,
        decoder_layers=1,
        attention_heads=1,
        resnet_blocks=(1, 1, 1),
        vocab=tokenizer.layout,
        image_size=IMAGE_SIZE,
        max_image_size=IMAGE_SIZE,
    )


def _sample(task: str, **fields: Any) -> Sample:
    text = None if task in ("caption", "detection") else "the red circle"
    return Sample(
        uid=f"{task}-1",
        task=task,
        source="test",
        split="val",
        image=ImageFacts(
            width=128,
            height=32,
            format="JPEG",
            sha256="0" * 64,
            original_width=128,
            original_height=32,
            name="x.jpg",
        ),
        text=text,
        instruction=source_text(task, text),
        **fields,
    )


def _answer(text: str, count: int) -> Answer:
    return Answer(text=text, count=count, confidence=min(1.0, 0.3 * count))


SAMPLES = {
    "caption": _sample("caption", references=("A red circle.", "One red, round thing!")),
    "vqa": _sample("vqa", answers=(_answer("red", 2), _answer("blue", 1))),
    "grounding": _sample("grounding", boxes=(Box(box=(16.0, 8.0, 64.0, 24.0)),)),
    "entailment": _sample("entailment", label="maybe"),
    "detection": _sample(
        "detection",
        boxes=(
            Box(box=(0.0, 0.0, 32.0, 32.0), label="small red circle"),
            Box(box=(64.0, 0.0, 128.0, 32.0), label="blue"),
        ),
    ),
}


def test_every_task_has_a_sample_here() -> None:
    assert set(SAMPLES) == set(task_names())


@pytest.mark.parametrize("name", task_names())
def test_a_model_that_says_the_target_scores_full(
    name: str, tokenizer: OFATokenizer, config: OFAConfig
) -> None:
    task, sample = get_task(name), SAMPLES[name]
    ids = task.target_ids(sample, tokenizer, config, IMAGE_SIZE)
    assert not set(ids) & {0, 1, 2, 3}
    said = Hypothesis([*ids, 2], -0.5, [0.0] * (len(ids) + 1))
    prediction = task.decode(said, (128, 32), tokenizer, config, IMAGE_SIZE)
    assert prediction.score == -0.5
    score = task.score([prediction], [sample])[task.metric]
    # One image alone has no telling phrases, and two of ten annotators agree with "red".
    expected = {"caption": 0.0, "vqa": (2 * (1 / 3) + 1 * (2 / 3)) / 3}.get(name, 1.0)
    assert score == pytest.approx(expected)


@pytest.mark.parametrize("name", task_names())
def test_the_target_fits_the_search(name: str, tokenizer: OFATokenizer, config: OFAConfig) -> None:
    task = get_task(name)
    options = task.options(5, tokenizer, config, IMAGE_SIZE)
    ids = task.target_ids(SAMPLES[name], tokenizer, config, IMAGE_SIZE)
    assert options.min_length <= len(ids) <= options.max_length
    if options.allowed_range:
        assert all(options.allowed_range[0] <= token < options.allowed_range[1] for token in ids)
    if options.trie:
        assert options.trie.following(ids) == [2]


def test_caption_teaches_any_reference_without_punctuation(
    tokenizer: OFATokenizer, config: OFAConfig
) -> None:
    task = get_task("caption")
    rng = random.Random(0)
    taught = {
        tokenizer.decode(task.target_ids(SAMPLES["caption"], tokenizer, config, IMAGE_SIZE, rng))
        for _ in range(20)
    }
    assert taught == {" A red circle", " One red round thing"}


def test_vqa_weighs_by_confidence(tokenizer: OFATokenizer, config: OFAConfig) -> None:
    assert get_task("vqa").confidence(SAMPLES["vqa"]) == pytest.approx(0.6)
    assert (
        tokenizer.decode(get_task("vqa").target_ids(SAMPLES["vqa"], tokenizer, config, IMAGE_SIZE))
        == " red"
    )


def test_grounding_says_the_bins_of_the_stored_image(
    tokenizer: OFATokenizer, config: OFAConfig
) -> None:
    ids = get_task("grounding").target_ids(SAMPLES["grounding"], tokenizer, config, IMAGE_SIZE)
    # 128 x 32 pixels become 64 x 64, and the last of 65 bins stands for 64.
    assert tokenizer.bins_of(ids) == [8, 16, 32, 48]


@pytest.mark.parametrize("bins", [[8, 16, 32], [32, 16, 8, 48], [8, 16, 8, 48]])
def test_grounding_reads_no_box_from_broken_bins(
    bins: list[int], tokenizer: OFATokenizer, config: OFAConfig
) -> None:
    task = get_task("grounding")
    said = Hypothesis([*tokenizer.bin_ids(bins), 2], 0.0, [])
    prediction = task.decode(said, (128, 32), tokenizer, config, IMAGE_SIZE)
    assert prediction.box is None
    assert task.score([prediction], [SAMPLES["grounding"]])[task.metric] == 0.0


def test_detection_leaves_out_what_was_not_said_whole(
    tokenizer: OFATokenizer, config: OFAConfig
) -> None:
    task = get_task("detection")
    label = tokenizer.encode(" blue")
    whole = [*tokenizer.bin_ids([32, 0, 64, 64]), *label]
    broken = [*tokenizer.bin_ids([1, 2, 3]), *label]
    said = Hypothesis([*broken, *whole, *tokenizer.bin_ids([1, 2]), 2], 0.0, [])
    prediction = task.decode(said, (128, 32), tokenizer, config, IMAGE_SIZE)
    assert prediction.objects == (("blue", (64.0, 0.0, 128.0, 32.0)),)
    # One of two true objects, and nothing said in vain.
    assert task.score([prediction], [SAMPLES["detection"]])[task.metric] == pytest.approx(2 / 3)


def test_one_true_object_is_found_once() -> None:
    task = get_task("detection")
    blue = ("blue", (64.0, 0.0, 128.0, 32.0))
    twice = Prediction(text="", box=None, score=0.0, objects=(blue, blue))
    assert task.score([twice], [SAMPLES["detection"]])[task.metric] == pytest.approx(0.5)


def test_no_predictions_score_nothing() -> None:
    for name in task_names():
        assert get_task(name).score([], [])[get_task(name).metric] == 0.0


def test_samples_without_a_target_are_named(tokenizer: OFATokenizer, config: OFAConfig) -> None:
    for name in ("vqa", "caption"):
        with pytest.raises(DataError, match=f"{name}-1"):
            get_task(name).target_ids(_sample(name), tokenizer, config, IMAGE_SIZE)


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"groundin.*known are"):
        get_task("groundin")
