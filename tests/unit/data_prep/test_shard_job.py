"""One shard: what webdataset reads is what went in, and every sample is accounted for."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import webdataset
from PIL import Image

from data_prep.config import PrepareConfig
from data_prep.dataset import (
    commit,
    complete_manifest,
    finish,
    locked,
    survey,
    withdraw_manifest,
)
from data_prep.errors import DataError
from data_prep.manifest import read_manifest
from data_prep.plan import DatasetPlan, plan_dataset
from data_prep.schema import Sample
from data_prep.shard_job import build_shard, ledger_path
from data_prep.shards import verify_shard
from data_prep.verification import verify_dataset
from tests.support.raw_data import jpeg, prepare_config, write_raw

pyarrow_parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_raw(tmp_path / "raw")
    return tmp_path / "raw"


def build(config: PrepareConfig) -> DatasetPlan:
    """What the Ray job does, in this process."""
    plan = plan_dataset(config, "mix")
    with locked(plan.folder) as claim:
        claim.begin()
        for number in survey(plan).todo:
            withdraw_manifest(plan)
            commit(claim, build_shard(plan.task(number), claim.staging))
        finish(plan, config.max_reject_rate, claim)
    return plan


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def quarantined(folder: Path) -> dict[str, dict[str, str]]:
    rows = pyarrow_parquet.read_table(folder / "quarantine.parquet").to_pylist()
    return {row["uid"]: row for row in rows}


def test_webdataset_reads_the_shards(raw: Path, tmp_path: Path) -> None:
    folder = build(prepare_config(raw, tmp_path / "out")).folder
    manifest = read_manifest(folder)
    assert manifest.counts == {"in": 30, "out": 30, "quarantined": 0}
    assert manifest.tasks == {
        "caption": 6,
        "detection": 6,
        "entailment": 6,
        "grounding": 6,
        "vqa": 6,
    }
    shards = [str(folder / shard.name) for shard in manifest.shards]
    items = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [item["__key__"] for item in items] == [f"{i:09d}" for i in range(30)]
    samples = [Sample.from_json(item["json"]) for item in items]
    assert len({sample.uid for sample in samples}) == 30
    for sample, item in zip(samples, items, strict=True):
        assert hashlib.sha256(item["jpg"]).hexdigest() == sample.image.sha256
        original = (raw / "images" / sample.image.name).read_bytes()
        assert item["jpg"] == original
    vqa = next(s for s in samples if s.uid == "vqav2/train/200")
    assert vqa.instruction == " is 2 red?"
    assert [(a.text, a.count, a.confidence) for a in vqa.answers] == [
        ("yes", 9, 1.0),
        ("no", 1, 0.3),
    ]


def test_the_index_points_at_the_members(raw: Path, tmp_path: Path) -> None:
    folder = build(prepare_config(raw, tmp_path / "out")).folder
    manifest = read_manifest(folder)
    rows = pyarrow_parquet.read_table(folder / "index.parquet").to_pylist()
    assert [row["position"] for row in rows] == list(range(30))
    for row in rows:
        shard = folder / manifest.shards[row["shard"]].name
        with shard.open("rb") as file:
            image = os.pread(file.fileno(), row["image_size"], row["image_offset"])
            record = os.pread(file.fileno(), row["json_size"], row["json_offset"])
        sample = Sample.from_json(record)
        assert (sample.uid, sample.task) == (row["uid"], row["task"])
        assert hashlib.sha256(image).hexdigest() == sample.image.sha256


def test_tars_carry_no_trace_of_the_machine(raw: Path, tmp_path: Path) -> None:
    folder = build(prepare_config(raw, tmp_path / "out")).folder
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
                assert (member.uname, member.gname, member.mode) == ("", "", 0o644)
        assert path.stat().st_size % tarfile.RECORDSIZE == 0


def _remove(raw: Path) -> None:
    (raw / "images" / f"{2:012d}.jpg").unlink()


def _write(content: bytes) -> Any:
    return lambda raw: (raw / "images" / f"{2:012d}.jpg").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_remove, "missing_image"),
        (_write(b""), "not_an_image"),
        (_write(jpeg(2)[:-300]), "truncated_image"),
    ],
)
def test_a_bad_image_costs_its_samples_and_no_others(
    raw: Path, tmp_path: Path, damage: Any, reason: str
) -> None:
    whole = build(prepare_config(raw, tmp_path / "whole")).folder
    damage(raw)
    folder = build(prepare_config(raw, tmp_path / "out", max_reject_rate=0.2)).folder
    manifest = read_manifest(folder)
    # Image 2 has a caption, a question, a hypothesis and boxes; its expressions are in val.
    assert manifest.counts == {"in": 30, "out": 26, "quarantined": 4}
    assert manifest.quarantine["reasons"] == {reason: 4}
    rows = quarantined(folder)
    assert rows.keys() == {
        "coco_captions/train/2",
        "coco_instances/train/2",
        "snli_ve/train/000000000002.jpg#0r1e",
        "vqav2/train/200",
    }
    assert rows["vqav2/train/200"]["position"] == "questions.json:questions[1]"
    # Every other sample keeps its key and its bytes.
    columns = ["position", "uid", "image_size", "json_size"]
    before = pyarrow_parquet.read_table(whole / "index.parquet", columns=columns).to_pylist()
    after = pyarrow_parquet.read_table(folder / "index.parquet", columns=columns).to_pylist()
    assert after == [row for row in before if row["uid"] not in rows]


def test_too_many_rejects_fail_without_a_manifest(raw: Path, tmp_path: Path) -> None:
    _remove(raw)
    config = prepare_config(raw, tmp_path / "out", max_reject_rate=0.1)
    with pytest.raises(DataError, match=r"4 of 30 .* max_reject_rate 0.1: 4 missing_image"):
        build(config)
    with pytest.raises(DataError, match="its preparation did not end"):
        read_manifest(tmp_path / "out" / "mix")
    assert len(quarantined(tmp_path / "out" / "mix")) == 4


def test_a_repaired_image_is_taken_up(raw: Path, tmp_path: Path) -> None:
    whole = build(prepare_config(raw, tmp_path / "whole")).folder
    _remove(raw)
    config = prepare_config(raw, tmp_path / "out", max_reject_rate=0.2)
    folder = build(config).folder
    _write(jpeg(2))(raw)
    assert 0 < len(survey(plan_dataset(config, "mix")).todo) <= 4
    build(config)
    assert files_of(folder) == files_of(whole)


def test_a_second_run_has_nothing_to_do(raw: Path, tmp_path: Path) -> None:
    config = prepare_config(raw, tmp_path / "out")
    build(config)
    plan = plan_dataset(config, "mix")
    assert survey(plan).todo == ()
    assert complete_manifest(plan) == read_manifest(plan.folder)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "ledger"])
def test_a_corrupt_shard_is_noticed_and_made_again(raw: Path, tmp_path: Path, damage: str) -> None:
    config = prepare_config(raw, tmp_path / "out")
    plan = build(config)
    before = files_of(plan.folder)
    shard = read_manifest(plan.folder).shards[1]
    path = plan.folder / shard.name
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    if damage == "flip":
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-512])
    elif damage == "remove":
        path.unlink()
    else:
        ledger_path(plan.folder, 1).write_bytes(b"{}")
    if damage != "ledger":
        with pytest.raises(DataError, match=rf"{shard.name} is (corrupt|missing)"):
            verify_shard(plan.folder, shard)
    assert survey(plan).todo == (1,)
    build(config)
    assert files_of(plan.folder) == before


def test_a_smaller_input_leaves_no_old_shards(raw: Path, tmp_path: Path) -> None:
    build(prepare_config(raw, tmp_path / "out", shard_size=5))
    fresh = build(prepare_config(raw, tmp_path / "fresh", shard_size=20)).folder
    folder = build(prepare_config(raw, tmp_path / "out", shard_size=20)).folder
    assert files_of(folder) == files_of(fresh)


def test_a_shard_whose_samples_are_all_rejected_is_empty(raw: Path, tmp_path: Path) -> None:
    for path in (raw / "images").iterdir():
        path.unlink()
    folder = build(prepare_config(raw, tmp_path / "out", max_reject_rate=1.0)).folder
    manifest = read_manifest(folder)
    assert manifest.counts == {"in": 30, "out": 0, "quarantined": 30}
    with tarfile.open(folder / manifest.shards[0].name) as tar:
        assert tar.getmembers() == []


def test_resized_samples_carry_fitted_boxes(raw: Path, tmp_path: Path) -> None:
    config = prepare_config(raw, tmp_path / "out")
    policy = dataclasses.replace(config.image, max_side=24)
    folder = build(dataclasses.replace(config, image=policy)).folder
    shards = [str(folder / shard.name) for shard in read_manifest(folder).shards]
    seen = set()
    for item in webdataset.WebDataset(shards, shardshuffle=False):
        sample = Sample.from_json(item["json"])
        assert (sample.image.width, sample.image.height) == (24, 16)
        assert (sample.image.original_width, sample.image.original_height) == (48, 32)
        if sample.task == "grounding":
            seen.add(sample.boxes[0].box)
    assert seen == {(10.0, 2.0, 14.75, 6.0)}


def test_an_image_of_another_size_than_its_boxes_say(raw: Path, tmp_path: Path) -> None:
    Image.new("RGB", (99, 50)).save(raw / "images" / f"{1:012d}.jpg")
    folder = build(prepare_config(raw, tmp_path / "out", max_reject_rate=0.5)).folder
    # A question does not care; expressions and objects would point elsewhere.
    assert read_manifest(folder).quarantine["reasons"] == {"size_mismatch": 3}


def test_only_one_run_may_write(raw: Path, tmp_path: Path) -> None:
    with (
        locked(tmp_path / "out"),
        pytest.raises(DataError, match="another preparation is writing"),
        locked(tmp_path / "out"),
    ):
        pass


def test_an_output_that_cannot_be_written_is_one_error(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="cannot be written"):
        build(prepare_config(raw, tmp_path / "out"))


def test_images_are_stored_once_a_shard(raw: Path, tmp_path: Path) -> None:
    repeated = build(prepare_config(raw, tmp_path / "repeated", shard_size=30)).folder
    config = prepare_config(raw, tmp_path / "out", shard_size=30, store_images="once_per_shard")
    folder = build(config).folder
    manifest = read_manifest(folder)
    assert manifest.store_images == "once_per_shard"
    assert manifest.config_digest != read_manifest(repeated).config_digest
    (shard,) = manifest.shards
    with tarfile.open(folder / shard.name) as tar:
        names = tar.getnames()
    assert sum(name.endswith(".json") for name in names) == 30
    assert sum(name.endswith(".jpg") for name in names) == 6
    assert verify_dataset(folder, decode=True).problems.total == 0
    assert verify_dataset(repeated, decode=True).problems.total == 0


def test_shards_say_their_tasks(raw: Path, tmp_path: Path) -> None:
    folder = build(prepare_config(raw, tmp_path / "out")).folder
    manifest = read_manifest(folder)
    rows = pyarrow_parquet.read_table(folder / "index.parquet").to_pylist()
    for number, shard in enumerate(manifest.shards):
        tasks = Counter(row["task"] for row in rows if row["shard"] == number)
        assert shard.tasks == dict(tasks)
