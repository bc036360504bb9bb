"""`prefixworks prepare` on real Ray from every kind of source, to the training loader."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from data_prep.config import DatasetConfig, ImagePolicy, PrepareConfig, SourceConfig
from data_prep.manifest import read_manifest
from jobs.cli import main
from pipeline.config_reader import to_yaml
from pipeline.training.data import ShardReader
from tests.support.raw_data import jpeg, sources, write_raw
from tests.support.raw_tables import (
    table_source,
    tar_source,
    tsv_line,
    tsv_source,
    vqa_members,
    write_table,
    write_tar,
)
from tests.support.ray_cluster import head

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with head(cpus=2) as address:
        yield address


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources") / "raw"
    write_raw(folder, images=12)
    for path in folder.glob("*.json*"):
        packed = path.with_name(f"{path.name}.gz")
        packed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((folder / "images").iterdir()):
            archive.write(path, f"train/{path.name}")
    with tarfile.open(folder / "images.tar", "w") as archive:
        archive.add(folder / "images", "./")
    return folder


def recipe(folder: Path, cluster: str, parts: list[SourceConfig], **changes: object) -> str:
    config = PrepareConfig(
        output_dir=str(folder / "out"),
        datasets={"mix": DatasetConfig(sources=parts)},
        address=cluster,
        **{"shard_size": 10, "max_reject_rate": 0.0, **changes},  # type: ignore[arg-type]
    )
    folder.mkdir(exist_ok=True)
    path = folder / "prepare.yaml"
    path.write_text(to_yaml(config))
    return f"--config={path}"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def packed(raw: Path, images: str) -> list[SourceConfig]:
    """The sources of raw, with images elsewhere and every JSON file packed."""

    def gz(path: str | None) -> str | None:
        return f"{path}.gz" if path and ".json" in path else path

    return [
        replace(
            source,
            images=images,
            annotations=gz(source.annotations),
            questions=gz(source.questions),
            instances=gz(source.instances),
        )
        for source in sources(raw).values()
    ]


@pytest.fixture(scope="module")
def from_folder(
    raw: Path, cluster: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("folder")
    assert main(["prepare", recipe(folder, cluster, list(sources(raw).values()))]) == 0
    return files_of(folder / "out" / "mix")


@pytest.mark.parametrize("images", ["images.zip/train", "images.tar"])
def test_archives_and_packed_annotations_give_the_bytes_of_a_folder(
    raw: Path,
    cluster: str,
    tmp_path: Path,
    from_folder: dict[str, bytes],
    images: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFIXWORKS_CACHE", str(tmp_path / "cache"))
    argument = recipe(tmp_path, cluster, packed(raw, str(raw / images)))
    assert main(["data", "lint", argument]) == 0
    assert main(["prepare", argument, "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    assert main(["prepare", argument]) == 0
    found = files_of(tmp_path / "out" / "mix")
    assert found.keys() == from_folder.keys()
    # The manifest alone differs: it has the digests of the annotation files.
    assert [name for name in found if found[name] != from_folder[name]] == ["manifest.json"]
    assert main(["data", "verify", str(tmp_path / "out" / "mix"), "--workers=1"]) == 0


def png(seed: int) -> bytes:
    sink = BytesIO()
    with Image.open(BytesIO(jpeg(seed))) as image:
        image.save(sink, "PNG")
    return sink.getvalue()


def held_sources(folder: Path) -> list[SourceConfig]:
    """Four samples about each of six images, in each format that holds its images."""
    ids, each = range(1, 7), range(4)
    (folder / "questions.tsv").write_bytes(
        b"".join(
            tsv_line([f"{i}{k}", str(i), f"is it {k}?", "1.0|!+yes", "house", jpeg(i)])
            for i in ids
            for k in each
        )
    )
    rows = [
        {"uid": f"{i}{k}", "image": {"bytes": png(i), "path": f"{i}.png"}, "references": [f"a {k}"]}
        for i in ids
        for k in each
    ]
    for part in range(2):
        write_table(folder / f"captions-{part}.parquet", rows[part::2])
        members = [
            member
            for i in ids
            for k in each[part::2]
            for member in vqa_members(f"{i}{k}", image_id=f"{i}")
        ]
        write_tar(folder / f"part-{part}.tar", list(members))
    return [
        tsv_source(folder / "questions.tsv", "vqa"),
        table_source(folder / "captions-*.parquet", "caption"),
        tar_source(folder / "part-{0..1}.tar", "vqa", columns={"uid": "uid"}),
    ]


def test_files_that_hold_their_images_become_shards_that_training_reads(
    cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = held_sources(tmp_path)
    argument = recipe(
        tmp_path,
        cluster,
        parts,
        image=ImagePolicy(store="keep"),
        store_images="once_per_shard",
        shard_size=30,
    )
    assert main(["data", "lint", argument]) == 0
    assert main(["prepare", argument, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "samples   72 (24 caption, 48 vqa), 0 annotations rejected" in said
    assert "(an estimate from " in said
    assert not (tmp_path / "out").exists()

    assert main(["prepare", argument]) == 0
    folder = tmp_path / "out" / "mix"
    assert main(["data", "verify", str(folder), "--decode", "--workers=1"]) == 0
    assert read_manifest(folder).counts == {"in": 72, "out": 72, "quarantined": 0}
    with ShardReader(folder) as reader:
        read = [reader.read(position) for position in range(len(reader))]
    assert {(sample.task, image.format) for sample, image in read} == {
        ("vqa", "JPEG"),
        ("caption", "PNG"),
    }
    assert len({sample.image.sha256 for sample, _ in read}) == 6 + 6 + 24
    capsys.readouterr()
    assert main(["prepare", argument]) == 0
    assert "nothing to do" in capsys.readouterr().out

    again = tmp_path / "again"
    own = [SourceConfig(reader="webdataset", annotations=str(folder / "shard-*.tar"))]
    assert main(["prepare", recipe(again, cluster, own, image=ImagePolicy(store="keep"))]) == 0
    with ShardReader(again / "out" / "mix") as reader:
        copied = [reader.read(position)[0] for position in range(len(reader))]
    assert sorted(s.image.sha256 for s in copied) == sorted(s.image.sha256 for s, _ in read)


def test_replay_recovers_what_was_repaired_inside_an_archive(
    raw: Path, cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images.tar"
    names = [path.name for path in sorted((raw / "images").iterdir())]

    def write(kept: list[str]) -> None:
        with tarfile.open(images, "w") as archive:
            for name in kept:
                archive.add(raw / "images" / name, name)

    write(names[1:])
    argument = recipe(tmp_path, cluster, packed(raw, str(images)), max_reject_rate=0.2)
    assert main(["prepare", argument]) == 0
    assert read_manifest(tmp_path / "out" / "mix").counts["quarantined"] > 0
    write(names)
    capsys.readouterr()
    assert main(["data", "replay", argument]) == 0
    assert "rejected samples recovered" in capsys.readouterr().out
    replayed = files_of(tmp_path / "out" / "mix")
    shutil.rmtree(tmp_path / "out")
    assert main(["prepare", argument]) == 0
    assert files_of(tmp_path / "out" / "mix") == replayed
