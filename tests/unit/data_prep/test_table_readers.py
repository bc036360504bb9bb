"""Formats that bring their images along, and Karpathy's splits: what good files give."""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_prep.config import DatasetConfig, PrepareConfig, SourceConfig
from data_prep.dataset import finish, locked, survey
from data_prep.errors import DataError
from data_prep.manifest import Manifest
from data_prep.plan import plan_dataset
from data_prep.readers import SourceRecord
from data_prep.schema import Sample
from data_prep.shard_job import build_shard
from data_prep.stores import open_store
from tests.support.raw_data import jpeg, sources, write_json, write_raw
from tests.support.raw_tables import (
    TSV_ROWS,
    read,
    table_source,
    tar_source,
    tsv_line,
    tsv_source,
    vqa_members,
    write_table,
    write_tar,
)


def only(config: SourceConfig, blob: Path | None = None) -> SourceRecord:
    records, rejections = read(config, blob)
    assert not rejections
    (record,) = records.values()
    return record


def build(folder: Path, *parts: SourceConfig, **changes: Any) -> tuple[Manifest, dict[str, Any]]:
    """Prepares sources in this process; the manifest, and (sample, image) by uid."""
    settings = {"shard_size": 3, "max_reject_rate": 1.0, **changes}
    config = PrepareConfig(
        output_dir=str(folder), datasets={"mix": DatasetConfig(sources=list(parts))}, **settings
    )
    plan = plan_dataset(config, "mix")
    with locked(plan.folder):
        for number in survey(plan).todo:
            build_shard(plan.task(number))
        manifest = finish(plan, config.max_reject_rate)
    found = {}
    for shard in manifest.shards:
        with tarfile.open(plan.folder / shard.name) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
        for name, content in members.items():
            if name.endswith(".json"):
                sample = Sample.from_json(content)
                found[sample.uid] = (sample, members.get(name.replace(".json", ".jpg")))
    return manifest, found


def karpathy(path: Path, **changes: Any) -> SourceConfig:
    settings = {"reader": "karpathy", "images": str(path.parent), "annotations": str(path)}
    return SourceConfig(**{**settings, **changes})


def write_karpathy(path: Path) -> None:
    images = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{i:012d}.jpg",
            "cocoid": i,
            "imgid": 100 + i,
            "split": split,
            "sentences": [
                {"raw": f"Second of {i}.", "sentid": 2 * i + 1, "tokens": []},
                {"raw": f"First of {i}.", "sentid": 2 * i, "tokens": []},
            ],
        }
        for i, split in enumerate(("train", "restval", "val", "test", "train"), start=1)
    ]
    write_json(path, {"dataset": "coco", "images": images})


def test_karpathys_train_may_include_restval(tmp_path: Path) -> None:
    path = tmp_path / "dataset_coco.json"
    write_karpathy(path)
    plain, rejections = read(karpathy(path))
    assert not rejections
    assert plain.keys() == {"karpathy/train/1", "karpathy/train/5"}
    assert plain["karpathy/train/5"].image == "val2014/COCO_val2014_000000000005.jpg"
    assert plain["karpathy/train/5"].references == ("First of 5.", "Second of 5.")
    assert read(karpathy(path, restval=True))[0].keys() == {
        f"karpathy/train/{i}" for i in (1, 2, 5)
    }
    assert read(karpathy(path, split="val"))[0].keys() == {"karpathy/val/3"}


def test_flickrs_file_of_the_same_form_is_read(tmp_path: Path) -> None:
    path = tmp_path / "dataset_flickr30k.json"
    image = {"filename": "7.jpg", "imgid": 3, "split": "test", "sentences": [{"raw": "A dog."}]}
    write_json(path, {"images": [image]})
    record = only(karpathy(path, split="test"))
    assert (record.uid, record.image) == ("karpathy/test/3", "7.jpg")


def test_packed_annotations_give_the_same_records(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw")
    for name, config in sources(tmp_path / "raw").items():
        if name == "refer":
            continue
        role = "questions" if name == "vqav2" else "annotations"
        path = Path(str(getattr(config, role)))
        packed = path.with_name(f"{path.name}.gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        expected, _ = read(config)
        found, _ = read(replace(config, **{role: str(packed)}))
        assert {r.uid: (r.image, r.text, r.references, r.boxes) for r in found.values()} == {
            r.uid: (r.image, r.text, r.references, r.boxes) for r in expected.values()
        }


@pytest.mark.parametrize("task", TSV_ROWS)
def test_ofas_tsv_gives_samples_and_images(tmp_path: Path, task: str) -> None:
    path = tmp_path / "ofa.tsv"
    path.write_bytes(b"\n" + tsv_line(TSV_ROWS[task]).rstrip(b"\n") + b"\r\n")
    record = only(tsv_source(path, task))
    row = TSV_ROWS[task]
    assert record.uid == f"ofa_tsv/train/{row[0]}"
    assert (record.task, record.image, record.position) == (task, row[1], "ofa.tsv:line 2")
    image = next(field for field in row if isinstance(field, bytes))
    assert open_store(str(tmp_path)).read(record.address or "") == image
    if task == "caption":
        assert record.references == ("the sun sets", "a dock")
    elif task == "vqa":
        assert record.answers == (("yes", 4), ("no", 2), ("maybe", 1))
    elif task == "grounding":
        assert record.boxes == (((2.5, 1.0, 30.25, 20.0), None),)
    else:
        assert (record.text, record.premise) == ("a man sits.", "a man rests.")
        assert record.label == "maybe"


def test_tsv_columns_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "own.tsv"
    path.write_bytes(tsv_line([jpeg(4), "a dock", "7"]))
    columns: dict[str, str | int] = {"image": 0, "references": 1, "uid": 2, "image_id": 2}
    record = only(tsv_source(path, "caption", columns=columns, name="docks"))
    assert (record.uid, record.image, record.references) == ("docks/train/7", "7", ("a dock",))


@pytest.mark.parametrize("suffix", ["parquet", "feather", "arrow"])
def test_tables_give_their_images_through_a_blob(tmp_path: Path, suffix: str) -> None:
    path, blob = tmp_path / f"t.{suffix}", tmp_path / "images-0.blob"
    rows = [
        {"id": i, "q": f"is it {i}?", "a": ["yes", "no", "yes"], "image": {"bytes": b, "path": p}}
        for i, b, p in ((1, jpeg(1), "1.jpg"), (2, jpeg(2), None), (3, jpeg(1), "1.jpg"))
    ]
    write_table(path, rows)
    columns = {"uid": "id", "text": "q", "answers": "a"}
    records, rejections = read(table_source(path, "vqa", columns=columns), blob)
    assert not rejections
    assert records.keys() == {f"table/train/{i}" for i in (1, 2, 3)}
    first, second, third = records.values()
    assert first.answers == (("yes", 2), ("no", 1))
    assert (first.image, second.image) == ("1.jpg", hashlib.sha256(jpeg(2)).hexdigest())
    # Equal images are copied once.
    assert first.address == third.address
    assert blob.stat().st_size == len(jpeg(1)) + len(jpeg(2))
    store = open_store(str(tmp_path))
    assert [store.read(r.address or "") for r in (first, second)] == [jpeg(1), jpeg(2)]


@pytest.mark.parametrize(
    ("task", "values", "field", "expected"),
    [
        ("caption", {"references": "A dock."}, "references", ("A dock.",)),
        ("caption", {"references": ["A.", "B."]}, "references", ("A.", "B.")),
        ("vqa", {"text": "is it?"}, "answers", ()),
        ("vqa", {"text": "is it?", "answers": "yes"}, "answers", (("yes", 10),)),
        (
            "vqa",
            {"text": "is it?", "answers": [{"answer": "no"}, {"answer": "no"}]},
            "answers",
            (("no", 2),),
        ),
        ("grounding", {"text": "a", "box": [1, 2, 3, 4]}, "boxes", (((1, 2, 3, 4), None),)),
        ("entailment", {"text": "a", "label": "contradiction"}, "label", "no"),
        ("entailment", {"text": "a", "label": "yes", "premise": "b"}, "premise", "b"),
        (
            "detection",
            {"boxes": [[5, 2, 8, 4], [1, 2, 3, 4]], "labels": ["b", "a"]},
            "boxes",
            (((1, 2, 3, 4), "a"), ((5, 2, 8, 4), "b")),
        ),
    ],
)
def test_tables_of_every_task_may_name_image_files(
    tmp_path: Path, task: str, values: dict[str, Any], field: str, expected: Any
) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, [{"uid": "u", "image": "a/1.jpg", **values}])
    record = only(table_source(path, task, images=str(tmp_path)))
    assert (record.image, record.address) == ("a/1.jpg", None)
    assert getattr(record, field) == expected


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ({"uid": 1, "image": b"x"}, {}, "no column 'references' .* it has uid, image"),
        ({"uid": 1, "image": "x", "references": "a"}, {}, "holds names; give the folder 'images'"),
        ({"uid": 1, "image": b"x", "references": "a"}, {"images": "/"}, "leave 'images' out"),
        (
            {"uid": 1, "image": b"x", "references": "a"},
            {"columns": {"image_id": "picture"}},
            "no column 'picture'",
        ),
    ],
)
def test_a_table_of_another_form_is_one_line(
    tmp_path: Path, row: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, [row])
    with pytest.raises(DataError, match=message):
        read(table_source(path, "caption", **changes))


def test_shards_of_others_are_read_by_columns(tmp_path: Path) -> None:
    path = tmp_path / "cc-000.tar"
    members = [("dir/7.jpg", jpeg(7)), ("dir/7.txt", b"A dock."), ("dir/7.json", b'{"sha": "x"}')]
    write_tar(path, [*members, ("dir/8.png", jpeg(8)), ("dir/8.txt", "Ein Pärchen.".encode())])
    records, rejections = read(tar_source(path, "caption", columns={"references": ".txt"}))
    assert not rejections
    assert [(r.uid, r.references) for r in records.values()] == [
        ("webdataset/train/dir/7", ("A dock.",)),
        ("webdataset/train/dir/8", ("Ein Pärchen.",)),
    ]
    store = open_store(str(tmp_path))
    assert [store.read(r.address or "") for r in records.values()] == [jpeg(7), jpeg(8)]


def test_several_shards_are_one_source(tmp_path: Path) -> None:
    for i in range(3):
        write_tar(tmp_path / f"q-{i:03d}.tar", [*vqa_members(str(i))])
    for pattern in ("q-{000..002}.tar", "q-*.tar"):
        records, rejections = read(tar_source(tmp_path / pattern, "vqa", columns={"uid": "uid"}))
        assert not rejections
        assert [r.uid for r in records.values()] == [f"webdataset/train/q{i}" for i in range(3)]
    with pytest.raises(DataError, match="no such files"):
        read(tar_source(tmp_path / "z-*.tar"))


def test_prepared_shards_can_be_prepared_again(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw")
    before, samples = build(tmp_path / "one", *sources(tmp_path / "raw").values())
    again = tar_source(tmp_path / "one" / "mix" / "shard-*.tar", name="again")
    after, found = build(tmp_path / "two", again, shard_size=7)
    assert before.counts == after.counts == {"in": 30, "out": 30, "quarantined": 0}
    for uid, (sample, image) in samples.items():
        copy, copied = found[f"again/train/{uid}"]
        assert copied == image
        assert replace(copy, uid=uid, source=sample.source) == sample


def test_a_shared_image_of_a_shard_is_found_by_its_digest(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", images=1)
    captions = sources(tmp_path / "raw")["coco_captions"]
    _, found = build(tmp_path / "one", captions)
    ((sample, image),) = found.values()
    texts = [json.dumps(replace(sample, uid=uid).to_json()).encode() for uid in ("a", "b")]
    write_tar(tmp_path / "s.tar", [("1.jpg", image), ("1.json", texts[0]), ("2.json", texts[1])])
    records, rejections = read(tar_source(tmp_path / "s.tar"))
    assert not rejections
    assert len({record.address for record in records.values()}) == 1


def test_every_format_goes_through_to_shards(tmp_path: Path) -> None:
    (tmp_path / "ofa.tsv").write_bytes(tsv_line(TSV_ROWS["vqa"]) + b"broken\n")
    write_table(
        tmp_path / "t.parquet",
        [
            {"uid": "a", "image": jpeg(5), "references": "A."},
            {"uid": "b", "image": b"no image", "references": "B."},
        ],
        pa.schema([("uid", pa.string()), ("image", pa.binary()), ("references", pa.string())]),
    )
    write_tar(tmp_path / "w.tar", [*vqa_members("1"), ("../x", b"")])
    parts = (
        tsv_source(tmp_path / "ofa.tsv", "vqa"),
        table_source(tmp_path / "t.parquet", "caption"),
        tar_source(tmp_path / "w.tar", "vqa"),
    )
    manifest, found = build(tmp_path / "out", *parts)
    assert manifest.counts == {"in": 6, "out": 3, "quarantined": 3}
    assert manifest.quarantine["reasons"] == {
        "bad_image_name": 1,
        "malformed_annotation": 1,
        "not_an_image": 1,
    }
    assert {uid: image for uid, (_, image) in found.items()} == {
        "ofa_tsv/train/79": jpeg(1),
        "table/train/a": jpeg(5),
        "webdataset/train/1": jpeg(1),
    }
    # The same again has nothing to do; the blob keeps its time.
    config = PrepareConfig(
        output_dir=str(tmp_path / "out"),
        datasets={"mix": DatasetConfig(sources=list(parts))},
        shard_size=3,
    )
    assert survey(plan_dataset(config, "mix")).todo == ()
