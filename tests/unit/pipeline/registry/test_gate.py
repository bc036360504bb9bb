"""Only what is measurably better on the same data passes, and the way back is known."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pytest

from pipeline.errors import RegistryError
from pipeline.registry.card import note_of, noted
from pipeline.registry.comparison import compare
from pipeline.registry.gate import demand, judge
from pipeline.registry.history import Event, events, former_version
from pipeline.registry.record import (
    BaseIdentity,
    DataUse,
    PromptMeta,
    PromptRecord,
    TaskUse,
)

TEST = DataUse(role="evaluation", name="test", digest="sha256:dd", samples=5)
OTHER = DataUse(role="evaluation", name="other", digest="sha256:ee", samples=5)


def record(
    score: float | None = 0.5, data: tuple[DataUse, ...] = (TEST,), **extra: float
) -> PromptRecord:
    metrics = {} if score is None else {"vqa/accuracy": score}
    meta = PromptMeta(
        name="shapes",
        method="prefix",
        tuning={},
        tasks=(TaskUse(name="vqa", instruction=" {text}?", metric="vqa/accuracy"),),
        base=BaseIdentity(name="ofa-small", fingerprint="sha256:ab"),
        tokenizer_digest="sha256:aa",
        image_size=64,
        depth={"encoder": 2, "decoder": 2},
        trainable_parameters=9,
        data=data,
        config={"optimizer": {"lr": score}},
        metrics=metrics | {name.replace("__", "/"): value for name, value in extra.items()},
    )
    return PromptRecord(meta=meta, tensors={}, digest=f"sha256:{score}")


@pytest.mark.parametrize(("new", "passes"), [(0.6, True), (0.5, False), (0.4, False)])
def test_the_new_version_must_beat_the_present_one(new: float, passes: bool) -> None:
    verdict = judge(record(new), record(0.5))
    assert verdict.passed == passes
    assert f"vqa/accuracy 0.5 -> {new}" in verdict.reason


def test_of_a_loss_the_smaller_is_better() -> None:
    better = record(validation__loss=1.0)
    worse = record(validation__loss=2.0)
    assert judge(better, worse, "validation/loss").passed
    assert not judge(worse, better, "validation/loss").passed


@pytest.mark.parametrize(
    ("new", "present", "reason"),
    [
        (record(0.9, (OTHER,)), record(0.5), "measured on different data"),
        (record(0.9, (dataclasses.replace(TEST, samples=3),)), record(0.5), "different data"),
        (record(0.9, ()), record(0.5, ()), "different data"),
        (record(None), record(0.5), "new version has no score vqa/accuracy"),
        (record(0.9), record(None), "present version has no such score"),
    ],
)
def test_what_cannot_be_compared_does_not_pass(
    new: PromptRecord, present: PromptRecord, reason: str
) -> None:
    verdict = judge(new, present)
    assert not verdict.passed
    assert reason in verdict.reason
    with pytest.raises(RegistryError, match=r"was not promoted.*--force"):
        demand(verdict, "shapes/2")


def test_the_data_set_can_be_named() -> None:
    for name in ("test", "sha256:dd"):
        assert judge(record(0.6), record(0.5), dataset=name).passed
    assert not judge(record(0.6), record(0.5), dataset="other").passed


def test_validation_data_count_where_there_is_no_evaluation() -> None:
    used = tuple(dataclasses.replace(TEST, role=role) for role in ("train", "validation"))
    assert [use.role for use in record(0.5, used).measured_on] == ["validation"]
    assert judge(record(0.6, used), record(0.5, used)).passed


def event(action: str, version: int, former: int | None, alias: str = "champion") -> Event:
    return Event(alias=alias, action=action, version=version, former=former, reason="")


LINE = [event("promote", 1, None), event("promote", 2, 1), event("promote", 3, 2)]


@pytest.mark.parametrize(
    ("past", "present", "existing", "former"),
    [
        (LINE, 3, {1, 2, 3}, 2),
        ([*LINE, event("rollback", 2, 3)], 2, {1, 2, 3}, 1),
        ([*LINE, event("rollback", 2, 3), event("rollback", 1, 2)], 1, {1, 2, 3}, None),
        ([*LINE, event("rollback", 2, 3), event("promote", 4, 2)], 4, {1, 2, 3, 4}, 2),
        (LINE, 3, {1, 3}, 1),  # version 2 was deleted
        (LINE, 9, {1, 2, 3, 9}, 3),  # moved by other means
        (LINE, 2, {1, 2, 3}, 1),  # killed between the event and the move
        (LINE, None, {1, 2}, 2),  # the champion was deleted
        ([event("promote", 5, None, "challenger")], None, {5}, None),
        ([event("promote", 2, 1)], 2, {1, 2}, 1),  # the first one was never ours
        ([], 1, {1}, None),
    ],
)
def test_the_way_back(
    past: list[Event], present: int | None, existing: set[int], former: int | None
) -> None:
    assert former_version(past, "champion", present, existing) == former


def test_events_are_tags_in_the_order_of_time() -> None:
    early = event("promote", 1, None).as_tag(datetime(2026, 1, 2, tzinfo=UTC))
    late = event("promote", 2, 1).as_tag(datetime(2026, 1, 3, tzinfo=UTC))
    tags = dict([late, early]) | {"history.mine": "by hand", "history.20260101": "{}", "a": "b"}
    assert [found.version for _, found in events(tags)] == [1, 2]
    assert events(tags)[0][0] == "20260102T000000.000000Z"


def test_a_note_stands_above_the_card_and_goes_again() -> None:
    card = "# shapes\n\n> quoted in the card\n"
    once = noted(card, "in use\nsince May")
    assert once == "> in use\n> since May\n\n" + card
    assert note_of(once) == "in use\nsince May"
    assert noted(once, "other") == "> other\n\n" + card
    assert noted(once, "") == card
    assert note_of(card) == ""


def test_side_by_side_shows_what_differs() -> None:
    found = compare([record(0.5), record(0.6), record(None, (OTHER,))])
    assert found.metrics == {"vqa/accuracy": [0.5, 0.6, None]}
    assert found.settings == {"optimizer.lr": ["0.5", "0.6", "null"]}
    assert set(found.facts) == {"data.evaluation", "prompt_digest"}
    assert not found.comparable
    assert compare([record(0.5), record(0.6)]).comparable
