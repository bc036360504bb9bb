"""Verification: a whole dataset passes, and every kind of damage is told and never crashes it."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data_prep.manifest import read_manifest
from data_prep.quarantine import QUARANTINE_SCHEMA
from data_prep.verification import Verification, dataset, verify_dataset
from data_prep.verification import problems as problems_module
from tests.support.rewritten import (
    forge_index,
    in_format,
    parquet,
    read_samples,
    rewrite,
    sign_again,
    with_bytes,
    write_manifest,
)
from tests.support.small_world import prepared_world

FIRST = "shard-000000.tar"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_world(tmp_path_factory.mktemp("whole"), scenes=3, shard_size=12)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "world"))


def told(result: Verification) -> str:
    assert result.problems.total == len(result.problems.kept)
    return "\n".join(map(str, result.problems.kept))


def row_of(folder: Path, task: str, shard: int = 0) -> dict[str, Any]:
    rows = pq.read_table(folder / "index.parquet").to_pylist()
    found: dict[str, Any] = next(r for r in rows if (r["task"], r["shard"]) == (task, shard))
    return found


def change_bytes(path: Path, offset: int, new: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(new)] = new
    path.write_bytes(content)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_whole_dataset_passes(whole: Path, workers: int) -> None:
    done: list[int] = []
    totals: list[int] = []
    result = verify_dataset(
        whole, decode=True, workers=workers, on_start=totals.append, on_bytes=done.append
    )
    assert told(result) == ""
    manifest = read_manifest(whole)
    assert (result.shards, result.samples) == (len(manifest.shards), manifest.samples)
    assert result.images == manifest.samples
    assert result.digest == manifest.digest
    assert [sum(done)] == totals == [sum(shard.bytes for shard in manifest.shards)]


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [False, True])
def test_other_formats_and_shared_images_pass(
    whole: Path, tmp_path: Path, image_format: str, share: bool
) -> None:
    folder = rewrite(whole, tmp_path / "new", change=in_format(image_format), share=share)
    result = verify_dataset(folder, decode=True)
    assert told(result) == ""
    assert result.samples == read_manifest(folder).samples
    distinct = len({s.image.sha256 for s, _ in read_samples(folder)})
    assert (result.images < result.samples) == share
    assert result.images >= distinct
    extensions = {name.partition(".")[2] for name in _member_names(folder)}
    assert extensions == {"json", {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[image_format]}


def _member_names(folder: Path) -> list[str]:
    names: list[str] = []
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            names += tar.getnames()
    return names


def _flip_image(folder: Path) -> None:
    row = row_of(folder, "caption")
    change_bytes(folder / FIRST, row["image_offset"] + row["image_size"] // 2, b"\x5a\xa5")


def _flip_json(folder: Path) -> None:
    change_bytes(folder / FIRST, row_of(folder, "caption")["json_offset"], b"[")


def _other_uid(folder: Path) -> None:
    row = row_of(folder, "vqa")
    content = (folder / FIRST).read_bytes()
    at = content.index(row["uid"].encode(), row["json_offset"])
    change_bytes(folder / FIRST, at, b"x")


def _truncate(folder: Path) -> None:
    content = (folder / FIRST).read_bytes()
    (folder / FIRST).write_bytes(content[: len(content) // 2])


def _swap(folder: Path) -> None:
    first, second = folder / FIRST, folder / "shard-000001.tar"
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)


def _edit_manifest(folder: Path) -> None:
    record = json.loads((folder / "manifest.json").read_bytes())
    record["samples"] += 1
    (folder / "manifest.json").write_text(json.dumps(record))


def _edit_index(folder: Path) -> None:
    content = (folder / "index.parquet").read_bytes()
    forge_index(folder, lambda rows: rows[0].update(uid="other"))
    forged = (folder / "index.parquet").read_bytes()
    (folder / "index.parquet").write_bytes(content)
    sign_again(folder)
    (folder / "index.parquet").write_bytes(forged)


def _pipe(folder: Path) -> None:
    (folder / FIRST).unlink()
    os.mkfifo(folder / FIRST)


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (_flip_image, ["its SHA-256 is not the manifest's", "image has another SHA-256"]),
        (_flip_json, ["its SHA-256 is not the manifest's", "not valid JSON"]),
        (_other_uid, ["its record is of 'x"]),
        (_truncate, ["bytes, the manifest says", "beyond the end", "cut off|without the mark"]),
        (_swap, ["shard-000000.tar: its SHA-256", "shard-000001.tar: its SHA-256"]),
        (_edit_manifest, ["its digest does not fit", "samples, but"]),
        (_edit_index, ["index.parquet: its SHA-256", "'other': its record is of"]),
        (lambda f: (f / FIRST).unlink(), ["shard-000000.tar: the file is missing"]),
        (_pipe, ["shard-000000.tar: the file is missing"]),
        (lambda f: (f / "index.parquet").unlink(), ["index.parquet: the file is missing"]),
        (lambda f: (f / "quarantine.parquet").unlink(), ["quarantine.parquet: .* missing"]),
        (lambda f: (f / "manifest.json").unlink(), ["manifest.json: .*did not end"]),
        (lambda f: (f / "manifest.json").write_bytes(b"{"), ["manifest.json: not valid JSON"]),
        (lambda f: (f / "shard-000099.tar").write_bytes(b""), ["shard-000099.tar: the manifest"]),
        (lambda f: (f / "index.parquet").write_bytes(b"PAR1"), ["index.*cannot be read"]),
        (lambda f: shutil.rmtree(f), ["not a prepared dataset"]),
    ],
)  # fmt: skip
def test_damage_is_told(
    folder: Path, damage: Callable[[Path], object], messages: list[str]
) -> None:
    damage(folder)
    found = told(verify_dataset(folder))
    for message in messages:
        assert _matches(message, found), found


def _matches(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None


def _set(**values: Any) -> Callable[[list[dict[str, Any]]], object]:
    return lambda rows: rows[1].update(values)


def _same(*names: str) -> Callable[[list[dict[str, Any]]], object]:
    return lambda rows: rows[1].update({name: rows[0][name] for name in names})


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (_set(uid="other"), ["'other': its record is of"]),
        (_set(task="caption2"), ["the index says 'caption2'", "the index has the tasks"]),
        (_set(image_offset=513), ["no image at byte 513"]),
        (_set(image_size=2**62), ["beyond the end"]),
        (_set(image_size=-1), ["beyond the end"]),
        (_set(json_size=3), ["bytes, the index says 3"]),
        (_set(position=10**15), ["does not belong into this shard", "not in the order"]),
        (_set(position=-(2**63)), ["does not belong into this shard"]),
        (_set(shard=77), ["shard 77, the manifest has", "the index has 11 samples"]),
        (_set(shard=-1), ["shard -1, the manifest has"]),
        (_same("uid"), ["uid '.*' is there 2 times"]),
        (_same("position"), ["position 0 is there 2 times"]),
        (_same("image_offset", "image_size"), ["its image is called", "is not in the index"]),
        (_same("json_offset", "json_size"), ["its record is called", "is not in the index"]),
        (lambda rows: rows.pop(), ["rows, the manifest has", "is not in the index"]),
        (lambda rows: rows.reverse(), ["not in the order of their positions"]),
        (lambda rows: rows.clear(), ["0 rows, the manifest has"]),
        (_set(uid=None), ["some of its values are missing"]),
    ],
)
def test_a_forged_index_is_told(
    folder: Path, change: Callable[[list[dict[str, Any]]], object], messages: list[str]
) -> None:
    forge_index(folder, change)
    found = told(verify_dataset(folder))
    for message in messages:
        assert _matches(message, found), found


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../../escape.jpg", tarfile.REGTYPE),
        ("/etc/passwd", tarfile.REGTYPE),
        ("000000000.exe", tarfile.REGTYPE),
        ("000000000.jpg\n\x1b[2J", tarfile.REGTYPE),
        ("000000000.jpg", tarfile.SYMTYPE),
        ("000000000.jpg", tarfile.CHRTYPE),
        ("000000000.jpg", tarfile.GNUTYPE_SPARSE),
        ("x" * 300, tarfile.GNUTYPE_LONGNAME),
    ],
)
def test_a_forged_member_is_told_and_followed_nowhere(folder: Path, name: str, kind: bytes) -> None:
    content = (folder / FIRST).read_bytes()
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    (folder / FIRST).write_bytes(info.tobuf(tarfile.GNU_FORMAT) + content)
    sign_again(folder)
    found = told(verify_dataset(folder))
    assert _matches(
        "cannot be the name of a member|no header of a regular file|is there twice", found
    )
    assert "\x1b" not in found


def test_a_member_beside_the_index_is_told(folder: Path) -> None:
    content = (folder / FIRST).read_bytes()
    info = tarfile.TarInfo("999999999.json")
    (folder / FIRST).write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + content)
    sign_again(folder)
    assert "999999999.json is not in the index" in told(verify_dataset(folder))


def test_image_facts_are_compared_with_the_bytes(folder: Path) -> None:
    row = row_of(folder, "caption")
    path = folder / FIRST
    content = path.read_bytes()
    record = content[row["json_offset"] :][: row["json_size"]]
    facts = json.loads(record)["image"]
    size = f'"width":{facts["width"]}'.encode()
    change_bytes(path, row["json_offset"] + record.index(size) + len(size) - 1, b"9")
    sign_again(folder)
    assert _matches(r"is a JPEG of .* its record says JPEG of", told(verify_dataset(folder)))


def test_only_decoding_finds_an_image_that_was_cut_before_it_came_in(
    whole: Path, tmp_path: Path
) -> None:
    folder = rewrite(
        whole, tmp_path / "cut", change=lambda s, image: with_bytes(s, image[:-300], "JPEG")
    )
    assert told(verify_dataset(folder)) == ""
    assert "cannot be read, OSError: " in told(verify_dataset(folder, decode=True))


def test_shared_images_need_a_manifest_that_says_so(whole: Path, tmp_path: Path) -> None:
    folder = rewrite(whole, tmp_path / "shared", share=True)
    manifest = read_manifest(folder)
    write_manifest(folder, dataclasses.replace(manifest, store_images="repeated"))
    assert "its image is called" in told(verify_dataset(folder))


def test_the_quarantine_is_compared(folder: Path) -> None:
    row = {"uid": "a", "position": "b", "reason": "too_blue", "detail": "c"}
    (folder / "quarantine.parquet").write_bytes(parquet([row], QUARANTINE_SCHEMA))
    sign_again(folder)
    found = told(verify_dataset(folder))
    assert "rows of {'too_blue': 1}, the manifest says {}" in found
    assert "'too_blue' is no reason" in found


def test_the_list_of_problems_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems_module, "MOST_PROBLEMS", 5)
    forge_index(folder, lambda rows: [row.update(image_offset=7) for row in rows])
    problems = verify_dataset(folder).problems
    assert len(problems.kept) == 5
    assert problems.total > read_manifest(folder).samples


@pytest.mark.parametrize("seed", range(20))
def test_random_garbage_never_crashes_it(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    names = ["manifest.json", "index.parquet", "quarantine.parquet", FIRST]
    path = folder / rng.choice(names)
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 20, 400])):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
    result = verify_dataset(folder)
    assert result.problems.total > 0


def test_a_killed_checker_is_a_problem_and_not_a_crash(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Unpickled in the other process, this ends it at once, as running out of memory does.
    monkeypatch.setattr(dataset, "check_shard", _die)
    found = told(verify_dataset(folder, workers=2))
    shards = len(read_manifest(folder).shards)
    assert found.count("a process that checks shards was killed") == shards


def _die(check: object) -> None:
    os._exit(9)


def test_an_archive_without_its_end_is_told(folder: Path) -> None:
    path = folder / FIRST
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + last.size + -last.size % 512
    path.write_bytes(path.read_bytes()[:end])
    sign_again(folder)
    assert "without the mark of its end" in told(verify_dataset(folder))
