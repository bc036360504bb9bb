"""Manifest: what is written is read back, and what does not add up is refused."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import DataError
from data_prep.fields import canonical_json
from data_prep.manifest import Manifest, ShardInfo, read_manifest


def shard(number: int, tasks: dict[str, int]) -> ShardInfo:
    return ShardInfo(
        name=f"shard-{number:06d}.tar",
        samples=sum(tasks.values()),
        bytes=10240,
        sha256="00",
        tasks=tasks,
    )


def manifest(**changes: Any) -> Manifest:
    settings: dict[str, Any] = {
        "name": "mix",
        "seed": 0,
        "shard_size": 10,
        "samples": 7,
        "shards": (shard(0, {"caption": 1, "vqa": 3}), shard(1, {"vqa": 3})),
        "tasks": {"caption": 1, "vqa": 6},
        "counts": {"in": 8, "out": 7, "quarantined": 1},
        "sources": ({"reader": "vqav2"},),
        "image": {"max_side": 512},
        "store_images": "repeated",
        "index": {"name": "index.parquet", "sha256": "11"},
        "quarantine": {"name": "quarantine.parquet", "sha256": "22", "reasons": {"bad_box": 1}},
    }
    return Manifest(**{**settings, **changes})


def test_a_manifest_survives_the_round_trip(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(canonical_json(manifest().to_json()))
    present = read_manifest(tmp_path)
    assert present == manifest()
    assert present.digest == manifest().digest
    assert present.digest.startswith("sha256:")


def test_the_digest_covers_everything() -> None:
    whole = manifest().to_json()
    for name in whole.keys() - {"digest", "format", "schema_version", "index", "quarantine"}:
        changed = copy.deepcopy(whole)
        changed[name] = {int: 99, str: "other", list: [], dict: {}}[type(whole[name])]
        with pytest.raises(DataError, match="digest does not fit"):
            Manifest.from_json(changed)
    for name in ("index", "quarantine"):
        changed = copy.deepcopy(whole)
        changed[name]["sha256"] = "other"
        with pytest.raises(DataError, match="digest does not fit"):
            Manifest.from_json(changed)


def test_a_manifest_of_format_1_keeps_its_digest() -> None:
    body: dict[str, Any] = {
        "format": "prefixworks.manifest/1",
        "schema_version": 1,
        "name": "mix",
        "seed": 0,
        "shard_size": 10,
        "samples": 7,
        "shards": [{"name": "shard-000000.tar", "samples": 7, "bytes": 10240, "sha256": "00"}],
        "tasks": {"vqa": 7},
        "counts": {"in": 8, "out": 7, "quarantined": 1},
        "sources": [{"reader": "vqav2"}],
        "image": {"max_side": 512},
        "index": {"name": "index.parquet", "sha256": "11"},
        "quarantine": {"name": "quarantine.parquet", "sha256": "22", "reasons": {"bad_box": 1}},
    }
    digest = "sha256:" + hashlib.sha256(canonical_json(body)).hexdigest()
    old = Manifest.from_json({**body, "digest": digest})
    assert old.digest == digest
    assert old.shards[0].tasks is None
    assert old.to_json() == {**body, "digest": digest}


def test_the_config_digest_is_of_the_settings_alone() -> None:
    whole = manifest()
    other_result = manifest(
        samples=6,
        shards=(shard(0, {"vqa": 6}),),
        tasks={"vqa": 6},
        counts={"in": 8, "out": 6, "quarantined": 2},
        name="other",
    )
    assert other_result.config_digest == whole.config_digest
    assert whole.to_json()["config_digest"] == whole.config_digest
    for changes in (
        {"seed": 1},
        {"shard_size": 11},
        {"sources": ({"reader": "refer"},)},
        {"image": {"max_side": 256}},
        {"store_images": "once_per_shard"},
    ):
        assert dataclasses.replace(whole, **changes).config_digest != whole.config_digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": {"in": 9, "out": 7, "quarantined": 1}}, "counts do not balance"),
        ({"counts": {"in": 8}}, "counts are of in, out and quarantined"),
        ({"counts": {"in": 9, "out": 7, "quarantined": 2}}, "2 quarantined, but 1 with a reason"),
        ({"counts": {"in": 7, "out": 6, "quarantined": 1}}, "7 samples, but 6 out"),
        ({"samples": 8}, "8 samples, but 7 out, 7 in the shards"),
        ({"tasks": {"caption": 2, "vqa": 5}}, "tasks .* in the shards"),
        (
            {
                "shards": (
                    dataclasses.replace(shard(0, {"caption": 1, "vqa": 3}), samples=7),
                    dataclasses.replace(shard(1, {"vqa": 3}), samples=0),
                )
            },
            "shard-000000.tar: 7 samples, but 4 of the tasks",
        ),
        (
            {"shards": (shard(0, {"caption": 1, "vqa": 3}), shard(0, {"vqa": 3}))},
            "'shard-000000.tar' cannot be the name of a shard twice",
        ),
        (
            {
                "shards": (
                    dataclasses.replace(shard(0, {"caption": 1, "vqa": 6}), name="../../passwd"),
                )
            },
            "'../../passwd' cannot be the name",
        ),
        ({"index": {"name": "../index.parquet", "sha256": "11"}}, "index is called"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Manifest.from_json(manifest(**changes).to_json())


def test_everything_that_is_wrong_is_said() -> None:
    record = manifest().to_json()
    record["samples"] = 8
    record["counts"]["in"] = 100
    _, problems = Manifest.examine(record)
    assert [problem.split()[0] for problem in problems] == ["its", "counts", "8"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not a prepared dataset"),
        (b"{", "not valid JSON"),
        (b"[]", "expected an object"),
        (b'{"format": "prefixworks.manifest/3"}', "prefixworks.manifest/3"),
        (b'{"format": ["prefixworks.manifest/1"]}', "this code reads prefixworks.manifest/1"),
        (b'{"format": "prefixworks.manifest/2", "schema_version": 2}', "schema version 2"),
        (b'{"format": "prefixworks.manifest/2", "schema_version": 1}', "missing fields"),
        (b'{"format": "prefixworks.manifest/1", "schema_version": 1}', "missing fields"),
    ],
)
def test_a_manifest_that_is_none_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "text", ['"image": NaN', '"image": {"a": NaN}', '"image": {"a": "\\ud800"}', '"seed": 1e999']
)
def test_values_that_json_cannot_hold_are_refused(text: str) -> None:
    record = json.dumps(manifest().to_json())
    name = text.split(":")[0]
    found = {'"image"': '"image": {"max_side": 512}', '"seed"': '"seed": 0'}[name]
    assert found in record
    with pytest.raises(DataError, match="manifest"):
        Manifest.from_json(record.replace(found, text))
