"""The record of a prompt survives a round trip and refuses what it cannot read."""

import json
from typing import Any

import pytest

from pipeline.errors import RegistryError
from pipeline.registry.card import describe, render_card
from pipeline.registry.record import (
    BaseIdentity,
    DataUse,
    PromptMeta,
    PromptRecord,
    TaskUse,
    TensorEntry,
)


def record() -> PromptRecord:
    """A record with every field filled."""
    meta = PromptMeta(
        name="shapes",
        method="prefix",
        tuning={"method": "prefix", "prefix": {"length": 3}},
        tasks=(TaskUse(name="vqa", instruction=" {text}?", metric="vqa/accuracy"),),
        base=BaseIdentity(name="ofa-small", fingerprint="sha256:aa"),
        tokenizer_digest="sha256:bb",
        image_size=64,
        depth={"encoder": 1, "decoder": 1},
        trainable_parameters=24,
        answers=("red", "two"),
        data=(DataUse(role="train", name="world", digest="sha256:cc", samples=1200),),
        config={"seed": 3, "data": {"train": ["a"]}},
        metrics={"vqa/accuracy": 0.75},
        libraries={"torch": "2.0"},
    )
    entry = TensorEntry(dtype="float32", shape=(2, 3, 4), sha256="dd")
    return PromptRecord(meta=meta, tensors={"encoder.0.key": entry}, digest="sha256:ee")


def changed(name: str, value: object) -> str:
    values: dict[str, Any] = json.loads(record().to_json())
    values[name] = value
    return json.dumps(values)


def test_round_trip() -> None:
    first = record()
    again = PromptRecord.from_json(first.to_json(), "prompt.json")
    assert again == first
    assert again.to_json() == first.to_json()
    assert (again.length, again.parameters) == (3, 24)
    assert again.headline == ("vqa/accuracy", 0.75)


def test_a_record_without_answers_has_open_ones() -> None:
    values: dict[str, Any] = json.loads(record().to_json())
    del values["answers"]
    assert PromptRecord.from_json(json.dumps(values), "prompt.json").meta.answers == ()


def test_metric_that_is_not_a_number_is_not_written() -> None:
    broken = record()
    broken.meta.metrics["vqa/accuracy"] = float("nan")
    with pytest.raises(RegistryError, match="shapes"):
        broken.to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (changed("answers", ["red", 2]), r"answers\[1\] is no text"),
        ("{", "not valid JSON"),
        ("[]", "no prompt record"),
        (changed("format", "prefixworks.prompt/2"), "newer format prefixworks.prompt/2.*update"),
        (changed("format", "other/1"), "unknown format 'other/1'"),
        (changed("base", {"name": "x"}), "no field 'base.fingerprint'"),
        (changed("image_size", "64"), "'image_size' is str, not int"),
        (changed("metrics", {"a": "high"}), "metrics.a is no number"),
        (changed("tasks", ["vqa"]), r"tasks\[0\] is no object"),
        (changed("tensors", {"t": {"dtype": "x", "sha256": "", "shape": [-1]}}), "list of sizes"),
    ],
)
def test_unreadable_records(text: str, message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        PromptRecord.from_json(text, "prompt.json")


def test_missing_field_is_named() -> None:
    values = json.loads(record().to_json())
    del values["licence"]
    with pytest.raises(RegistryError, match="no field 'licence'"):
        PromptRecord.from_json(json.dumps(values), "prompt.json")


def test_card_tells_what_a_user_needs() -> None:
    card = render_card(record(), {"predictions.png": "pictures/predictions.png"})
    for fact in ("# shapes", "ofa-small", "sha256:aa", "vqa/accuracy | 0.7500", "sha256:cc"):
        assert fact in card
    assert "![predictions.png](pictures/predictions.png)" in card
    assert "pictures" not in describe(record())
    assert len(describe(record(), limit=100)) <= 100
