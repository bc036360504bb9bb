"""The end of a dataset: streamed, the same for any size of steps, and honest about changes."""

from __future__ import annotations

import dataclasses
import errno
import gc
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from data_prep.changes import changes
from data_prep.claim import LEDGER
from data_prep.dataset import finish, summarize, survey
from data_prep.errors import DataError
from data_prep.files import HashedSink
from data_prep.ledger import LedgerEntry, ledger_path
from data_prep.manifest import ShardInfo, read_manifest
from data_prep.parquet_rows import ROW_GROUP, RowWriter
from data_prep.plan import DatasetPlan, plan_dataset
from data_prep.quarantine import QUARANTINE_SCHEMA, Reason, Rejection, RejectionTable
from data_prep.schema import Sample
from data_prep.shard_job import build_shard
from data_prep.shards import IndexRow, shard_name
from pipeline.training.data import ShardReader
from tests.support.raw_data import prepare_config, write_json, write_raw


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_raw(tmp_path / "raw")
    return tmp_path / "raw"


def build(plan: DatasetPlan, max_reject_rate: float = 0.0) -> Path:
    (plan.folder / LEDGER).mkdir(parents=True, exist_ok=True)
    for number in survey(plan).todo:
        build_shard(plan.task(number))
    finish(plan, max_reject_rate)
    return plan.folder


def test_rejections_come_back_sorted_and_counted() -> None:
    rows = [("b", "2"), ("a", "10"), ("ä", "1"), ("a", "1"), ("\ud800", "x"), ("Z", "0")]
    table = RejectionTable()
    table.add(
        Rejection(uid=uid, position=position, reason=Reason.BAD_BOX, detail="d\0d")
        for uid, position in rows
    )
    found = [(row["uid"], row["position"]) for row in table.rows()]
    assert found == sorted((uid.replace("\ud800", "\\ud800"), at) for uid, at in rows)
    assert table.reasons == {"bad_box": 6}
    assert next(table.rows())["detail"] == "d\0d"


def test_row_groups_depend_on_the_number_of_rows_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    with path.open("wb") as file:
        sink = HashedSink(file)
        with RowWriter(sink, pa.schema([("n", pa.int64())])) as rows:
            for n in range(2 * ROW_GROUP + 5):
                rows.add({"n": n})
    with pq.ParquetFile(path) as read:
        groups = [read.metadata.row_group(i).num_rows for i in range(read.num_row_groups)]
        assert groups == [ROW_GROUP, ROW_GROUP, 5]
        assert read.read()["n"].to_pylist() == list(range(2 * ROW_GROUP + 5))


class SmallDisk(io.BytesIO):
    """Takes a few bytes and is full."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, content: Any, /) -> int:
        if self.tell() + len(content) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(content)


@pytest.mark.parametrize("room", [0, 4, 60, 300])
def test_a_parquet_file_on_a_full_disk_is_an_error_and_nothing_more(
    room: int, capfd: pytest.CaptureFixture[str]
) -> None:
    def write() -> None:
        with RowWriter(HashedSink(SmallDisk(room)), QUARANTINE_SCHEMA) as rows:
            for n in range(ROW_GROUP + 1):
                rows.add(dict.fromkeys(QUARANTINE_SCHEMA.names, str(n)))

    with pytest.raises(OSError, match="No space left"):
        write()
    gc.collect()
    # Nothing that a collected writer complained of either.
    assert capfd.readouterr().err == ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ManyShards:
    """As much of a plan as the end of a dataset looks at, over a ledger that was written before."""

    folder: Path
    shards: int
    count_in: int
    rejected: int = 0
    name: str = "many"
    seed: int = 0
    shard_size: int = 1000
    sources: tuple[dict[str, object], ...] = ()
    store_images: str = "repeated"
    policy: dict[str, object] = dataclasses.field(default_factory=dict)

    def rejections(self) -> object:
        return iter(())


def write_ledger(folder: Path, shards: int) -> None:
    (folder / LEDGER).mkdir(parents=True)
    for number in range(shards):
        rows = tuple(
            IndexRow(
                shard=number, position=1000 * number + i, uid=f"source/train/{number}-{i}",
                task="vqa", image_offset=i, image_size=i, json_offset=i, json_size=i,
            )
            for i in range(500)
        )  # fmt: skip
        rejections = tuple(
            Rejection(uid=f"u{number}-{i}", position="p", reason=Reason.BAD_BOX, detail="d" * 50)
            for i in range(500)
        )
        shard = ShardInfo(
            name=shard_name(number), samples=500, bytes=1, sha256="0" * 64, tasks={"vqa": 500}
        )
        entry = LedgerEntry(digest="d", shard=shard, state="", rows=rows, rejections=rejections)
        ledger_path(folder, number).write_bytes(entry.to_bytes())


def peak_of_summary(folder: Path, shards: int) -> int:
    write_ledger(folder, shards)
    plan = ManyShards(folder=folder, shards=shards, count_in=1000 * shards)
    tracemalloc.start()
    summarize(plan, HashedSink(), HashedSink())  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_the_end_of_a_dataset_needs_no_more_memory_for_more_shards(tmp_path: Path) -> None:
    # Both fill a row group, which is all that may wait; 200,000 rows and rejections would be
    # some 60 MB.
    few = peak_of_summary(tmp_path / "few", 70)
    many = peak_of_summary(tmp_path / "many", 210)
    assert many < few + 3_000_000


def test_changes_are_counted(raw: Path, tmp_path: Path) -> None:
    config = prepare_config(raw, tmp_path / "out")
    build(plan_dataset(config, "mix"))
    assert changes(plan_dataset(config, "mix")).new == 0
    content = json.loads((raw / "captions.json").read_text())
    lines = (raw / "snli_ve.jsonl").read_text().splitlines(keepends=True)
    (raw / "snli_ve.jsonl").write_text("".join(lines[2:]))
    content["images"].append({**content["images"][0], "id": 99})
    content["annotations"].append({"id": 990, "image_id": 99, "caption": "One more."})
    write_json(raw / "captions.json", content)
    plan = plan_dataset(config, "mix")
    differs = changes(plan)
    assert (differs.new, differs.gone) == (1, 2)
    assert survey(plan).changed > 0


def test_rejected_samples_are_no_changes(raw: Path, tmp_path: Path) -> None:
    (raw / "images" / f"{2:012d}.jpg").unlink()
    config = prepare_config(raw, tmp_path / "out")
    build(plan_dataset(config, "mix"), 0.5)
    differs = changes(plan_dataset(config, "mix"))
    assert (differs.new, differs.gone) == (0, 0)


def test_a_shard_whose_time_changed_is_read_again(raw: Path, tmp_path: Path) -> None:
    plan = plan_dataset(prepare_config(raw, tmp_path / "out"), "mix")
    folder = build(plan)
    path = folder / shard_name(0)
    content = path.read_bytes()
    path.write_bytes(content)
    assert survey(plan).todo == ()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert survey(plan).todo == (0,)
    assert survey(plan).damaged == 1


def test_images_stored_once_read_the_same(raw: Path, tmp_path: Path) -> None:
    repeated = prepare_config(raw, tmp_path / "repeated", shard_size=30)
    once = dataclasses.replace(
        repeated, output_dir=str(tmp_path / "once"), store_images="once_per_shard"
    )
    folders = [build(plan_dataset(config, "mix")) for config in (repeated, once)]
    sizes = [sum(shard.bytes for shard in read_manifest(folder).shards) for folder in folders]
    assert sizes[1] < 0.6 * sizes[0]
    found = []
    for folder in folders:
        with ShardReader(folder) as reader:
            read = [reader.read(position) for position in range(len(reader))]
        found.append({sample.uid: (sample, image.tobytes()) for sample, image in read})
    assert len(found[0]) == 30
    assert found[0] == found[1]
    items = list(webdataset.WebDataset(str(folders[1] / "shard-000000.tar"), shardshuffle=False))
    # Six images; every sample has its record.
    assert sum("jpg" in item for item in items) == 6
    assert {Sample.from_json(item["json"]).uid for item in items} == found[0].keys()


def test_the_way_of_storing_images_is_part_of_a_shards_input(raw: Path, tmp_path: Path) -> None:
    config = prepare_config(raw, tmp_path / "out")
    build(plan_dataset(config, "mix"))
    once = plan_dataset(dataclasses.replace(config, store_images="once_per_shard"), "mix")
    assert len(survey(once).todo) == once.shards


def test_a_lost_sample_is_an_error(raw: Path, tmp_path: Path) -> None:
    plan = plan_dataset(prepare_config(raw, tmp_path / "out"), "mix")
    folder = build(plan)
    path = ledger_path(folder, 0)
    record = json.loads(path.read_bytes())
    record["rows"].pop()
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match="samples got lost"):
        finish(plan, 0.0)
