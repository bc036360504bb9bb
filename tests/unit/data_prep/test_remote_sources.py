"""Every reader takes its annotations, and the images in them, from an object store."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.config import DatasetConfig, PrepareConfig, SourceConfig
from data_prep.errors import DataError
from data_prep.manifest import read_manifest
from data_prep.plan import plan_dataset
from data_prep.stores import close_stores
from tests.support.raw_data import jpeg, sources, write_json, write_raw
from tests.support.raw_tables import (
    TSV_ROWS,
    table_source,
    tar_source,
    tsv_line,
    tsv_source,
    vqa_members,
    write_table,
    write_tar,
)
from tests.support.s3_server import BUCKET, ENVIRONMENT, S3Server, s3_server
from tests.support.small_world import prepare_in_process

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote") / "raw"
    write_raw(folder, images=2)
    packed = folder / "captions.json"
    packed.with_name("captions.json.gz").write_bytes(gzip.compress(packed.read_bytes()))
    karpathy = [
        {
            "filename": f"{i:012d}.jpg",
            "cocoid": i,
            "split": "train",
            "sentences": [{"raw": "A dock.", "sentid": i}],
        }
        for i in (1, 2)
    ]
    write_json(folder / "dataset_coco.json", {"images": karpathy})
    (folder / "ofa.tsv").write_bytes(tsv_line(TSV_ROWS["vqa"]))
    write_table(folder / "t.parquet", [{"uid": "a", "image": jpeg(5), "references": "A."}])
    for i in range(2):
        write_tar(folder / f"w-{i}.tar", [*vqa_members(str(i))])
    return folder


@pytest.fixture(scope="module")
def server(raw: Path) -> Iterator[S3Server]:
    with s3_server() as server:
        server.put_folder(raw, "raw")
        yield server


def all_sources(raw: Path) -> list[SourceConfig]:
    five = sources(raw)
    captions = replace(five["coco_captions"], annotations=str(raw / "captions.json.gz"))
    karpathy = SourceConfig(
        reader="karpathy",
        images=str(raw / "images"),
        annotations=str(raw / "dataset_coco.json"),
    )
    return [
        *({**five, "coco_captions": captions}).values(),
        karpathy,
        tsv_source(raw / "ofa.tsv", "vqa"),
        table_source(raw / "t.parquet", "caption"),
        tar_source(raw / "w-{0..1}.tar", "vqa"),
    ]


def config_of(folder: Path, parts: list[SourceConfig]) -> PrepareConfig:
    return PrepareConfig(
        output_dir=str(folder), datasets={"mix": DatasetConfig(sources=parts)}, max_reject_rate=0
    )


def test_every_reader_reads_from_a_bucket_that_only_its_options_tell(
    raw: Path, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    close_stores()

    def moved(path: str | None) -> str | None:
        remote = f"s3://{BUCKET}/raw"
        return path and f"{path.replace(str(raw), remote)}?endpoint={server.url}"

    here = all_sources(raw)
    there = [
        replace(
            source,
            images=moved(source.images),
            annotations=moved(source.annotations),
            questions=moved(source.questions),
            instances=moved(source.instances),
        )
        for source in here
    ]
    local = prepare_in_process(config_of(tmp_path / "local", here), "mix")
    remote = prepare_in_process(config_of(tmp_path / "remote", there), "mix")
    close_stores()
    assert read_manifest(local).counts == {"in": 16, "out": 16, "quarantined": 0}
    files = [{p.name: p.read_bytes() for p in f.iterdir() if p.is_file()} for f in (local, remote)]
    assert files[0] == files[1]


def test_stars_are_for_this_machine_only(raw: Path, tmp_path: Path) -> None:
    source = tar_source(Path("w-*.tar"), "vqa")
    source = replace(source, annotations=f"s3://{BUCKET}/raw/w-*.tar")
    with pytest.raises(DataError, match=r"'\*' finds files of this machine only; write braces"):
        plan_dataset(config_of(tmp_path, [source]), "mix")


def test_a_file_that_is_a_link_brings_its_images(raw: Path, tmp_path: Path) -> None:
    for name in ("ofa.tsv", "w-0.tar", "w-1.tar"):
        (tmp_path / name).symlink_to(raw / name)
    parts = [tsv_source(tmp_path / "ofa.tsv", "vqa"), tar_source(tmp_path / "w-*.tar", "vqa")]
    folder = prepare_in_process(config_of(tmp_path / "out", parts), "mix")
    assert read_manifest(folder).counts == {"in": 3, "out": 3, "quarantined": 0}


@pytest.mark.parametrize("reader", ["ofa_tsv", "webdataset"])
def test_images_inside_gzip_are_one_line(raw: Path, tmp_path: Path, reader: str) -> None:
    name = {"ofa_tsv": "ofa.tsv", "webdataset": "w-0.tar"}[reader]
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress((raw / name).read_bytes()))
    make = {"ofa_tsv": tsv_source, "webdataset": tar_source}[reader]
    with pytest.raises(DataError, match="images inside gzip cannot be reached; unpack the file"):
        plan_dataset(config_of(tmp_path / "out", [make(path, "vqa")]), "mix")
