"""Schema: what is written is read back, and everything else is refused with its path."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import DataError
from data_prep.fields import canonical_json
from data_prep.schema import (
    SCHEMA_VERSION,
    Answer,
    Box,
    ImageFacts,
    Sample,
    sample_key,
)

IMAGE = ImageFacts(
    width=48,
    height=32,
    format="JPEG",
    sha256="ab" * 32,
    original_width=96,
    original_height=64,
    name="a/b.jpg",
)


def grounding(**changes: Any) -> Sample:
    settings: dict[str, Any] = {
        "uid": "refer/train/1",
        "task": "grounding",
        "source": "refer",
        "split": "train",
        "image": IMAGE,
        "text": "the red circle",
        "boxes": (Box(box=(1.0, 2.5, 30.0, 31.0)),),
        "instruction": ' which region does the text " the red circle " describe?',
    }
    return Sample(**{**settings, **changes})


# Lone surrogates cannot be written as UTF-8; preparation rejects them.
_text = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    text=_text,
    references=st.lists(_text),
    answers=st.lists(st.tuples(_text, st.integers(1, 10))),
)
def test_any_sample_survives_the_round_trip(
    text: str, references: list[str], answers: list[tuple[str, int]]
) -> None:
    sample = grounding(
        text=text,
        premise=text,
        references=tuple(references),
        answers=tuple(Answer(text=t, count=c, confidence=min(1, 0.3 * c)) for t, c in answers),
    )
    content = canonical_json(sample.to_json())
    assert Sample.from_json(content) == sample
    assert Sample.from_json(content.decode()) == sample
    assert Sample.from_json(json.loads(content)) == sample


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uid": ""}, "uid is empty"),
        ({"task": "segmentation"}, "segmentation.*caption, vqa"),
        ({"instruction": ""}, "instruction"),
        ({"text": None}, "needs a text"),
        ({"boxes": ()}, "exactly one box, found 0"),
        ({"boxes": (Box(box=(0, 0, 49, 9)),)}, "not inside 48 x 32"),
        ({"boxes": (Box(box=(5, 0, 5, 9)),)}, "not inside"),
        ({"boxes": (Box(box=(-1, 0, 5, 9)),)}, "not inside"),
        ({"boxes": (Box(box=(0, 0, float("nan"), 9)),)}, "not inside"),
        ({"task": "entailment", "label": "perhaps"}, "'perhaps' is not one of yes, no, maybe"),
        ({"task": "detection"}, "need labels"),
        ({"image": dataclasses.replace(IMAGE, format="EXE")}, "'EXE' is not one of JPEG, PNG"),
        ({"answers": (Answer(text="a", count=5, confidence=1.5),)}, "confidence"),
        ({"answers": (Answer(text="a", count=5, confidence=float("nan")),)}, "confidence"),
    ],
)
def test_a_sample_that_contradicts_itself_cannot_exist(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        grounding(**changes)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("uid",), 3, r"\.uid: expected text, found 3"),
        (("text",), ["a"], r"\.text: expected text"),
        (("image", "width"), "48", r"\.image\.width: expected an integer"),
        (("image", "width"), True, r"\.image\.width: expected an integer"),
        (("image",), None, r"\.image: expected an object"),
        (("boxes",), {}, r"\.boxes: expected a list"),
        (("boxes", 0, "box"), [1, 2, 3], r"\.boxes\[0\]\.box: expected four numbers"),
        (("boxes", 0, "box"), [1, 2, 3, "4"], r"\.boxes\[0\]\.box: expected four numbers"),
        (("boxes", 0, "colour"), "red", r"\.boxes\[0\]: .*unknown fields \['colour'\]"),
        (("answers",), [{"text": "a", "count": 1}], r"\.answers\[0\]: missing .*confidence"),
        (("text",), "\ud800", r"\.text: expected text"),
        (("references",), ["\ud800"], r"\.references: expected a list of texts"),
        (("image", "width"), 10**30, r"\.image\.width: expected an integer of 64 bits"),
        (("boxes", 0, "box"), [0, 0, 9, 10**400], r"\.boxes\[0\]\.box: expected four numbers"),
        (("references",), [1], r"\.references: expected a list of texts"),
        (("schema_version",), SCHEMA_VERSION + 1, "schema version 2, this code reads 1"),
        (("schema_version",), "1", "schema version"),
    ],
)
def test_a_wrong_field_is_named(path: tuple[str | int, ...], value: Any, message: str) -> None:
    record: Any = json.loads(canonical_json(grounding().to_json()))
    place = record
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(DataError, match=message):
        Sample.from_json(record)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", "[" * 100_000, "null"])
def test_what_is_no_object_is_refused(content: bytes | str) -> None:
    with pytest.raises(DataError, match="sample"):
        Sample.from_json(content)


def test_keys_sort_as_positions_do() -> None:
    positions = [0, 9, 10, 999, 123_456_789]
    assert sorted(map(sample_key, positions)) == [sample_key(position) for position in positions]
