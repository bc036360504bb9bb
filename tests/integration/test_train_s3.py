"""Prepared data in an object store: the same samples in the same order, in a bounded cache."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.stores import close_stores
from model.checkpoint import TOKENIZER_FILE, load_config
from model.tokenizer import OFATokenizer
from pipeline.errors import ConfigError, DataError
from pipeline.training.data import Collator, ShardReader
from pipeline.training.data_config import DataConfig
from pipeline.training.loader import (
    BatchMaker,
    Loader,
    build_order,
    check_cache,
    open_data_sets,
)
from pipeline.training.shard_cache import GB, FileCache
from pipeline.training.workers import Kind
from tests.support.s3_server import BUCKET, ENVIRONMENT, S3Server, s3_server
from tests.support.small_world import prepared_world
from tests.support.training_run import run, small_base, write_recipe

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

LOCATION = f"s3://{BUCKET}/data/world"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_world(tmp_path_factory.mktemp("prepared"), scenes=5, shard_size=10)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Path:
    return small_base(tmp_path_factory.mktemp("base") / "base", prepared)


@pytest.fixture
def server(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server() as server:
        server.put_folder(prepared, "data/world")
        environment = {"AWS_ENDPOINT_URL": server.url, "AWS_REGION": "us-east-1", **ENVIRONMENT}
        environment["PREFIXWORKS_CACHE"] = str(tmp_path / "usual")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        close_stores()
        yield server
        close_stores()


def order_of(location: str, base: Path, data: DataConfig, kind: Kind, workers: int) -> list[str]:
    tokenizer = OFATokenizer.from_file(base / TOKENIZER_FILE)
    collate = Collator(tokenizer, load_config(str(base)), 32)
    (reader,) = open_data_sets([location], data)
    with (
        reader,
        Loader(
            build_order([reader], data, 0),
            BatchMaker([reader], collate, 0),
            rank=0,
            ranks=1,
            batch_size=8,
            accumulation=1,
            workers=workers,
            kind=kind,
        ) as loader,
    ):
        return [uid for step in loader.steps(0, 15) for batch in step for uid in batch.uids]


def cached(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("*.bin")}


@pytest.mark.parametrize(("kind", "workers"), [("threads", 0), ("threads", 3), ("processes", 2)])
def test_samples_come_in_the_order_of_a_folder(
    server: S3Server, prepared: Path, base: Path, tmp_path: Path, kind: Kind, workers: int
) -> None:
    data = DataConfig(streams=4, cache_dir=str(tmp_path / "cache"))
    expected = order_of(str(prepared), base, data, "threads", 0)
    assert order_of(LOCATION, base, data, kind, workers) == expected
    with ShardReader(prepared) as reader:
        wanted = {f"{shard.sha256}.bin" for shard in reader.manifest.shards}
        wanted.add(f"{reader.manifest.index['sha256']}.bin")
    assert cached(tmp_path / "cache").keys() == wanted


def test_what_is_cached_is_not_fetched_again(
    server: S3Server, prepared: Path, tmp_path: Path
) -> None:
    cache = FileCache(tmp_path / "cache", GB)
    with ShardReader(LOCATION, cache) as reader:
        expected = [reader.read(row)[0] for row in range(len(reader))]
    with ShardReader(LOCATION, cache) as reader:
        server.stop()
        assert [reader.read(row)[0] for row in range(len(reader))] == expected
    with ShardReader(prepared) as reader:
        assert [reader.read(row)[0] for row in range(len(reader))] == expected


def test_the_cache_keeps_its_bound_and_the_last_used(
    server: S3Server, prepared: Path, tmp_path: Path
) -> None:
    shards = [path.stat().st_size for path in prepared.glob("shard-*.tar")]
    index = (prepared / "index.parquet").stat().st_size
    limit = index + 3 * max(shards)
    assert sum(shards) > limit
    folder = tmp_path / "cache"
    with ShardReader(LOCATION, FileCache(folder, limit)) as reader:
        rows = {int(shard): row for row, shard in enumerate(reader.index.shards)}
        for shard, row in [*rows.items(), *rows.items()]:
            reader.read(rows[0])
            assert reader.read(row)[0].uid == reader.uids[row]
            kept = cached(folder)
            assert sum(kept.values()) <= limit
            assert f"{reader.manifest.shards[0].sha256}.bin" in kept
            assert f"{reader.manifest.shards[shard].sha256}.bin" in kept
    assert not list(folder.glob("*.partial"))
    assert set(cached(folder)) < {f"{s.sha256}.bin" for s in reader.manifest.shards} | {
        f"{reader.manifest.index['sha256']}.bin"
    }


def read_all(folder: str, limit: int, seed: int) -> int:
    """All samples, as one of several ranks that share a cache."""
    with ShardReader(LOCATION, FileCache(Path(folder), limit)) as reader:
        rows = sorted(range(len(reader)), key=lambda row: hash((seed, row)))
        for row in rows:
            assert reader.read(row)[0].uid == reader.uids[row]
        return len(rows)


def test_processes_share_a_cache(server: S3Server, prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    limit = 8 * max(path.stat().st_size for path in prepared.glob("shard-*.tar"))
    largest, stop = 0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while not stop.is_set():
            found = 0
            for entry in os.scandir(folder) if folder.is_dir() else []:
                try:
                    found += entry.stat().st_size
                except FileNotFoundError:
                    continue
            largest = max(largest, found)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with multiprocessing.get_context("spawn").Pool(3) as pool:
            counts = pool.starmap(read_all, [(str(folder), limit, seed) for seed in range(3)])
    finally:
        stop.set()
        watcher.join()
    with ShardReader(prepared) as reader:
        assert counts == [len(reader)] * 3
    assert 0 < largest <= limit


def test_what_a_killed_process_left_is_removed(
    server: S3Server, prepared: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "0123.partial").write_bytes(bytes(1000))
    with ShardReader(LOCATION, FileCache(folder, GB)) as reader:
        reader.read(0)
    assert not list(folder.glob("*.partial"))


def test_bad_objects_are_named_and_not_kept(
    server: S3Server, prepared: Path, tmp_path: Path
) -> None:
    client = server.client()
    cut = (prepared / "shard-000001.tar").read_bytes()
    server.put(
        {
            "data/world/shard-000000.tar": bytes((prepared / "shard-000000.tar").stat().st_size),
            "data/world/shard-000001.tar": cut[:-512],
        }
    )
    client.delete_object(Bucket=BUCKET, Key="data/world/shard-000002.tar")
    folder = tmp_path / "cache"
    with ShardReader(LOCATION, FileCache(folder, GB)) as reader:
        rows = {int(shard): row for row, shard in enumerate(reader.index.shards)}
        for shard, said in enumerate(("SHA-256 is not", "its manifest says", "no such object")):
            place = re.escape(f"{LOCATION}/shard-{shard:06d}.tar")
            with pytest.raises(DataError, match=f"{place}.*{said}"):
                reader.read(rows[shard])
        assert reader.read(rows[3])[0].uid == reader.uids[rows[3]]
    assert len(cached(folder)) == 2
    assert not list(folder.glob("*.partial"))


def test_a_store_that_is_down_is_one_error(server: S3Server, tmp_path: Path) -> None:
    with ShardReader(LOCATION, FileCache(tmp_path / "cache", GB)) as reader:
        server.stop()
        began = time.monotonic()
        with pytest.raises(DataError, match="cannot be reached") as caught:
            reader.read(0)
    assert time.monotonic() - began < 60
    assert "\n" not in str(caught.value)


def test_a_cache_that_is_too_small_for_the_streams_is_refused(
    server: S3Server, prepared: Path, tmp_path: Path
) -> None:
    shards = sorted(path.stat().st_size for path in prepared.glob("shard-*.tar"))
    room = (sum(shards[-2:]) + 1) / GB
    few = DataConfig(streams=2, cache_dir=str(tmp_path / "c"), cache_gb=room)
    many = DataConfig(streams=4, cache_dir=str(tmp_path / "c"), cache_gb=room)
    (reader,) = open_data_sets([LOCATION], few)
    check_cache([reader], few, 1)
    check_cache([reader], many, 2)
    with pytest.raises(ConfigError, match=r"data\.cache_gb = .*4 streams"):
        check_cache([reader], many, 1)


@pytest.mark.slow
def test_a_run_trains_from_the_store(
    server: S3Server, prepared: Path, base: Path, tmp_path: Path
) -> None:
    cache = str(tmp_path / "cache")
    remote = {"train": [LOCATION], "validation": [LOCATION], "cache_dir": cache}
    losses = []
    for name, data in (
        ("here", {"validation": [str(prepared)]}),
        ("there", {**remote, "loader": "processes"}),
    ):
        status, said = run(write_recipe(tmp_path / f"{name}.yaml", base, prepared, data=data))
        assert status == 0, said
        lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        losses.append([(m["step"], m.get("train/loss"), m.get("validation/loss")) for m in found])
    assert losses[0] == losses[1]
    assert len(losses[0]) > 6
