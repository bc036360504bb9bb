"""The plan: order and membership are a function of samples, seed and shard size alone."""

from __future__ import annotations

import dataclasses
import json
import random
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from data_prep.config import DatasetConfig, ImagePolicy, PrepareConfig, SourceConfig
from data_prep.errors import DataError
from data_prep.plan import plan_dataset
from data_prep.quarantine import Reason
from data_prep.readers import SourceRecord
from pipeline.config_tree import build, plain
from tests.support.raw_data import prepare_config, sources, write_json, write_raw


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_raw(tmp_path / "raw", images=12)
    return tmp_path / "raw"


def uids(config: PrepareConfig) -> list[list[str]]:
    with plan_dataset(config, "mix") as plan:
        tasks = [plan.task(number) for number in range(plan.shards)]
    return [[SourceRecord.from_bytes(content)[1].uid for content in t.records] for t in tasks]


def contents(config: PrepareConfig) -> list[list[SourceRecord]]:
    """Records without the places of their annotations."""
    with plan_dataset(config, "mix") as plan:
        tasks = [plan.task(number) for number in range(plan.shards)]
    found = [[SourceRecord.from_bytes(content)[1] for content in t.records] for t in tasks]
    return [[dataclasses.replace(record, position="") for record in shard] for shard in found]


def test_the_seed_decides_the_order(raw: Path, tmp_path: Path) -> None:
    first = uids(prepare_config(raw, tmp_path, seed=1))
    assert first == uids(prepare_config(raw, tmp_path, seed=1))
    other = uids(prepare_config(raw, tmp_path, seed=2))
    assert first != other
    assert sorted(chain(*first)) == sorted(chain(*other))
    # 12 expressions are in train: 5 * 12 samples and no source in one piece.
    assert [len(shard) for shard in first] == [5] * 12
    assert len({uid.split("/")[0] for uid in first[0]}) > 1


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_rows_means_nothing(raw: Path, tmp_path: Path, seed: int) -> None:
    before = contents(prepare_config(raw, tmp_path))
    draw = random.Random(seed)
    for name in ("captions", "questions", "answers", "instances"):
        content = json.loads((raw / f"{name}.json").read_text())
        for rows in content.values():
            draw.shuffle(rows)
        write_json(raw / f"{name}.json", content)
    lines = (raw / "snli_ve.jsonl").read_text().splitlines(keepends=True)
    draw.shuffle(lines)
    (raw / "snli_ve.jsonl").write_text("".join(lines))
    assert contents(prepare_config(raw, tmp_path)) == before


def test_the_same_uid_twice_is_one_sample_and_one_rejection(raw: Path, tmp_path: Path) -> None:
    line = (raw / "snli_ve.jsonl").read_text().splitlines()[3]
    with (raw / "snli_ve.jsonl").open("a") as file:
        file.write(line.replace("There", "Here") + "\n")
    plan = plan_dataset(prepare_config(raw, tmp_path), "mix")
    assert plan.records == 60
    assert [r.reason for r in plan.rejections()] == [Reason.DUPLICATE_UID]
    assert plan.by_task["entailment"] == 12
    assert plan.count_in == 61


def test_a_text_that_is_no_unicode_is_rejected(raw: Path, tmp_path: Path) -> None:
    path = raw / "snli_ve.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0].replace("There", "\\ud800"))
    plan = plan_dataset(prepare_config(raw, tmp_path), "mix")
    assert [r.reason for r in plan.rejections()] == [Reason.BAD_TEXT]


def test_missing_folders_and_files_are_errors(raw: Path, tmp_path: Path) -> None:
    (raw / "captions.json").unlink()
    with pytest.raises(DataError, match=r"captions\.json cannot be read: No such file"):
        plan_dataset(prepare_config(raw, tmp_path), "mix")
    config = SourceConfig(reader="snli_ve", images=str(tmp_path / "no"), annotations="x")
    with pytest.raises(DataError, match="no such folder of images"):
        plan_dataset(
            PrepareConfig(output_dir="out", datasets={"a": DatasetConfig(sources=[config])}), "a"
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard_size": 0}, "shard_size"),
        ({"workers": 0}, "workers"),
        ({"max_reject_rate": 1.5}, "max_reject_rate"),
        ({"datasets": {}}, "datasets is empty"),
        ({"datasets": {"../a": None}}, "cannot be the name of a folder"),
    ],
)
def test_impossible_settings_are_refused(
    raw: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    settings = {**vars(prepare_config(raw, tmp_path)), **changes}
    with pytest.raises(ValueError, match=message):
        PrepareConfig(**settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reader": "refer", "annotations": "x"}, "needs 'instances'"),
        ({"reader": "vqav2", "annotations": "x"}, "needs 'questions'"),
        ({"reader": "snli_ve"}, "needs 'annotations'"),
        ({"reader": "snli_ve", "annotations": "x", "questions": "y"}, "no meaning for reader"),
        ({"reader": "refer", "annotations": "x", "instances": "y", "use_premise": True}, "meaning"),
        ({"reader": "coco_captions", "annotations": "x", "images": None}, "needs 'images'"),
        ({"reader": "ofa_tsv", "annotations": "x", "images": None}, "needs 'task'"),
        ({"reader": "table", "annotations": "x"}, "needs 'task'"),
        ({"reader": "webdataset", "annotations": "x"}, "'images' has no meaning"),
        ({"reader": "coco_captions", "annotations": "x", "task": "vqa"}, "'task' has no meaning"),
        ({"reader": "snli_ve", "annotations": "x", "columns": {"uid": 1}}, "no meaning"),
        ({"reader": "karpathy", "annotations": "x", "split": "dev"}, "split must be one of train"),
        ({"reader": "karpathy", "annotations": "x", "split": "val", "restval": True}, "restval"),
        (
            {"reader": "webdataset", "annotations": "x", "images": None, "columns": {"uid": "a"}},
            "columns need a 'task'",
        ),
        (
            {"reader": "table", "annotations": "x", "task": "vqa", "columns": {"caption": "a"}},
            "'caption' is no role of task 'vqa'; its roles are uid, image, image_id, text, answers",
        ),
        (
            {"reader": "table", "annotations": "x", "task": "vqa", "columns": {"text": 3}},
            "'text' must be a name, found 3",
        ),
        (
            {
                "reader": "ofa_tsv",
                "annotations": "x",
                "images": None,
                "task": "vqa",
                "columns": {"text": "q"},
            },
            "'text' must be a column number, found 'q'",
        ),
        (
            {"reader": "ofa_tsv", "annotations": "x", "images": None, "task": "detection"},
            "no layout",
        ),
        (
            {"reader": "table", "annotations": "x", "task": "vqa", "use_premise": True},
            "'use_premise' has no meaning for task 'vqa'",
        ),
    ],
)
def test_impossible_sources_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceConfig(**{"images": "x", **changes})


def test_columns_come_from_a_recipe_unchanged() -> None:
    source = {"reader": "ofa_tsv", "annotations": "x.tsv", "task": "vqa"}
    values = {"output_dir": "o", "datasets": {"a": {"sources": [source]}}}
    source["columns"] = {"text": 2, "image": 7}
    config = build(PrepareConfig, values)
    assert config.datasets["a"].sources[0].columns == {"text": 2, "image": 7}
    assert build(PrepareConfig, plain(config)) == config
    source.update(reader="table", columns={"text": "question"})
    assert build(PrepareConfig, values).datasets["a"].sources[0].columns == {"text": "question"}


def test_sources_have_different_names(raw: Path) -> None:
    source = sources(raw)["refer"]
    with pytest.raises(ValueError, match="give one of them a 'name'"):
        DatasetConfig(sources=[source, source])


@pytest.mark.parametrize(
    "changes",
    [
        {"max_side": 0},
        {"quality": 101},
        {"max_pixels": 100_000_000},
        {"max_pixels": 0},
        {"time_limit_s": 0},
        {"time_limit_s": float("nan")},
        {"upscale": True, "store": "keep"},
        {"upscale": True, "max_side": 9000},
    ],
)
def test_impossible_image_policies_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"image.{next(iter(changes))}"):
        ImagePolicy(**changes)
