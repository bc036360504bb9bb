"""What a preparation says of its input before it does anything."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from data_prep.config import PrepareConfig
from data_prep.dataset import survey
from data_prep.plan import plan_dataset
from data_prep.shards import shard_name
from jobs.prepare_report import describe, estimated_bytes
from tests.support.raw_data import prepare_config, write_json, write_raw
from tests.unit.data_prep.test_dataset import build


@pytest.fixture
def config(tmp_path: Path) -> PrepareConfig:
    """A dataset that is prepared: 30 samples in 6 shards."""
    write_raw(tmp_path / "raw")
    config = prepare_config(tmp_path / "raw", tmp_path / "out")
    build(plan_dataset(config, "mix"))
    return config


def described(config: PrepareConfig) -> str:
    plan = plan_dataset(config, "mix")
    return describe(plan, survey(plan))


def test_an_unchanged_dataset_has_nothing_to_be_said(config: PrepareConfig) -> None:
    said = described(config)
    assert "6 finished already" in said
    assert "changed   " not in said
    assert "damaged   " not in said


def test_one_new_sample_is_counted_and_so_is_what_it_moves(
    config: PrepareConfig, tmp_path: Path
) -> None:
    path = tmp_path / "raw" / "captions.json"
    content = json.loads(path.read_text())
    content["images"].append({**content["images"][0], "id": 99})
    content["annotations"].append({"id": 990, "image_id": 99, "caption": "One more."})
    write_json(path, content)
    todo = len(survey(plan_dataset(config, "mix")).todo)
    said = described(config)
    assert f"1 samples are in no finished shard, 0 of theirs are gone; {todo} of 7 shards" in said
    assert "move the borders" in said


def test_other_settings_are_no_new_samples(config: PrepareConfig) -> None:
    policy = dataclasses.replace(config.image, max_side=24)
    said = described(dataclasses.replace(config, image=policy))
    assert "0 samples are in no finished shard, 0 of theirs are gone; 6 of 6 shards" in said
    assert "the same samples with other settings" in said


def test_a_damaged_shard_is_named_as_such(config: PrepareConfig, tmp_path: Path) -> None:
    (tmp_path / "out" / "mix" / shard_name(2)).write_bytes(b"")
    assert "damaged   1 shards are not what they were" in described(config)


def test_an_estimate_without_a_readable_image_says_so(
    config: PrepareConfig, tmp_path: Path
) -> None:
    for path in (tmp_path / "raw" / "images").iterdir():
        path.unlink()
    assert "unknown, no image that was tried can be read" in described(config)


def test_an_estimate_knows_of_images_that_are_stored_once(
    config: PrepareConfig,
) -> None:
    def estimated(config: PrepareConfig) -> int:
        found = estimated_bytes(plan_dataset(config, "mix"))
        assert found is not None
        return found[0]

    wide = dataclasses.replace(config, shard_size=30)
    once = dataclasses.replace(wide, store_images="once_per_shard")
    assert estimated(once) < 0.6 * estimated(wide)
