"""The catalog: ordered, reused, made again when anything changed, and no larger in memory."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.config import DatasetConfig, PrepareConfig, SourceConfig
from data_prep.dataset import locked
from data_prep.errors import DataError
from data_prep.plan import plan_dataset
from data_prep.quarantine import Reason
from data_prep.readers import SourceRecord
from tests.support.raw_data import jpeg, prepare_config, sources, write_json, write_raw
from tests.support.raw_tables import table_source, tsv_line, tsv_source, write_table


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_raw(tmp_path / "raw", images=12)
    return tmp_path / "raw"


def mixed(output: Path, *parts: SourceConfig, **changes: Any) -> PrepareConfig:
    datasets = {"mix": DatasetConfig(sources=list(parts))}
    return PrepareConfig(output_dir=str(output), datasets=datasets, **changes)


def records(config: PrepareConfig, keep: bool = True) -> list[list[SourceRecord]]:
    """The records of each shard."""
    with plan_dataset(config, "mix", keep=keep) as plan:
        tasks = [plan.task(number) for number in range(plan.shards)]
        assert sum(plan.by_task.values()) == plan.records
        assert plan.count_in == plan.records + len(list(plan.rejections()))
    return [[SourceRecord.from_bytes(content)[1] for content in task.records] for task in tasks]


def meaning(shards: list[list[SourceRecord]]) -> list[list[SourceRecord]]:
    """Records without the places where their annotations and images lie."""
    return [[replace(r, position="", address=None) for r in shard] for shard in shards]


def test_a_second_plan_reads_no_annotations(raw: Path, tmp_path: Path) -> None:
    config = prepare_config(raw, tmp_path / "out")
    seen: list[tuple[str, int]] = []
    with plan_dataset(config, "mix", on_progress=lambda *said: seen.append(said)) as plan:
        digests = [plan.task(number).digest for number in range(plan.shards)]
    assert seen == [
        ("coco_captions", 12),
        ("vqav2", 12),
        ("refer", 12),
        ("snli_ve", 12),
        ("coco_instances", 12),
    ]
    ledger = tmp_path / "out" / "mix" / ".ledger"
    assert sorted(p.name for p in ledger.iterdir()) == ["catalog.sqlite", "catalog.state"]
    with plan_dataset(config, "mix", on_progress=lambda *_: pytest.fail("it was read")) as plan:
        assert [plan.task(number).digest for number in range(plan.shards)] == digests


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "state", "stop"])
def test_a_damaged_catalog_is_made_again(raw: Path, tmp_path: Path, damage: str) -> None:
    config = prepare_config(raw, tmp_path / "out")
    before = records(config)
    ledger = tmp_path / "out" / "mix" / ".ledger"
    path, state = ledger / "catalog.sqlite", ledger / "catalog.state"
    content = path.read_bytes()
    if damage == "flip":
        at = content.index(b"Caption 0 of image 3")
        path.write_bytes(content[:at] + b"b" + content[at + 1 :])
    elif damage == "cut":
        path.write_bytes(content[:5000])
    elif damage == "remove":
        path.unlink()
    elif damage == "state":
        state.write_bytes(b"[]")
    else:
        # As a kill between two of the steps would leave it.
        state.unlink()
        (ledger / ".staged.1.tmp").write_bytes(b"x")
        (ledger / ".catalog.sqlite.1.tmp").write_bytes(b"x")
        with locked(ledger.parent) as claim:
            claim.begin()
            assert not list(ledger.glob(".*.tmp"))
    assert records(config) == before
    assert path.read_bytes() == content


def test_a_crash_while_reading_leaves_no_catalog(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = prepare_config(raw, tmp_path / "out")

    def stop(source: str, count: int) -> None:
        if source == "refer":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan_dataset(config, "mix", on_progress=stop)
    assert list((tmp_path / "out" / "mix" / ".ledger").iterdir()) == []
    assert len(records(config)) == 12


def test_what_changes_makes_another_catalog(raw: Path, tmp_path: Path) -> None:
    config = prepare_config(raw, tmp_path / "out")
    first = records(config)
    content = json.loads((raw / "captions.json").read_text())
    content["annotations"][0]["caption"] = "Another."
    write_json(raw / "captions.json", content)
    second = records(config)
    changed = [
        (a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True)
        if a != b
    ]  # fmt: skip
    assert [(a.uid, b.references[0]) for a, b in changed] == [("coco_captions/train/1", "Another.")]
    assert records(replace(config, seed=3)) != second
    assert records(config) == second


def test_a_look_ahead_writes_nothing(raw: Path, tmp_path: Path) -> None:
    config = prepare_config(raw, tmp_path / "out")
    looked = records(config, keep=False)
    assert not (tmp_path / "out").exists()
    assert records(config) == looked
    # With a catalog, looking ahead reads that one.
    with plan_dataset(
        config, "mix", keep=False, on_progress=lambda *_: pytest.fail("it was read")
    ) as plan:
        # Odd images have two expressions more.
        assert plan.image_bytes == sum((6 if i % 2 else 4) * len(jpeg(i)) for i in range(1, 13))


def test_samples_of_an_image_stay_together(raw: Path, tmp_path: Path) -> None:
    config = prepare_config(raw, tmp_path / "out", store_images="once_per_shard")
    shards = records(config)
    order = [record.image for shard in shards for record in shard]
    assert len(order) == 60
    turns = [image for i, image in enumerate(order) if i == 0 or order[i - 1] != image]
    assert len(turns) == 12
    assert turns != sorted(turns)
    plain = records(prepare_config(raw, tmp_path / "out"))
    assert sorted(r.uid for s in plain for r in s) == sorted(r.uid for s in shards for r in s)


def test_a_split_that_nobody_has_is_an_error(raw: Path, tmp_path: Path) -> None:
    config = replace(sources(raw)["refer"], split="tran")
    with pytest.raises(DataError, match=r"refs\(test\)\.p: no samples of split 'tran'"):
        plan_dataset(mixed(tmp_path / "out", config), "mix")


def test_a_shard_that_is_not_there(raw: Path, tmp_path: Path) -> None:
    with plan_dataset(prepare_config(raw, tmp_path / "out"), "mix") as plan:
        assert [plan.records_in(n) for n in range(plan.shards)] == [5] * 12
        with pytest.raises(IndexError, match="has 12 shards, asked for 12"):
            plan.task(12)


def test_copied_images_are_written_once(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, [{"uid": i, "image": jpeg(i), "references": f"{i}"} for i in range(5)])
    caption = tmp_path / "c.parquet"
    write_table(caption, [{"uid": 1, "image": "a.jpg", "references": "x"}])
    other = table_source(caption, "caption", name="other", images=str(tmp_path))
    config = mixed(tmp_path / "out", table_source(path, "caption"), other)
    first = records(config)
    ledger = tmp_path / "out" / "mix" / ".ledger"
    (blob,) = ledger.glob("images-*.blob")
    state = blob.stat()
    # The other source changes: the blob was made from what did not.
    write_table(caption, [{"uid": 1, "image": "a.jpg", "references": "y"}])
    assert records(config) != first
    assert [p.stat() for p in ledger.glob("images-*.blob")] == [state]
    blob.unlink()
    records(config)
    assert blob.stat().st_size == state.st_size
    # Another table makes another blob, and the old one goes.
    write_table(path, [{"uid": 1, "image": jpeg(9), "references": "x"}])
    records(config)
    (fresh,) = ledger.glob("images-*.blob")
    assert (fresh.name != blob.name, fresh.stat().st_size) == (True, len(jpeg(9)))


ROWS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 3), st.sampled_from(["x", "y&&z", "w"])),
    min_size=1,
    max_size=25,
)


@settings(max_examples=25, deadline=None)
@given(rows=ROWS, seed=st.integers(0, 3), once=st.booleans(), data=st.data())
def test_any_order_of_rows_gives_the_same_shards(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[int, int, str]],
    seed: int,
    once: bool,
    data: st.DataObject,
) -> None:
    """Also with uids that come again, with the same content or another."""
    shuffled = data.draw(st.permutations(rows))
    found = []
    for arranged in (rows, shuffled):
        folder = tmp_path_factory.mktemp("rows")
        lines = [tsv_line([f"u{u}", f"{i}", text, "", jpeg(i)]) for u, i, text in arranged]
        (folder / "a.tsv").write_bytes(b"".join(lines))
        config = mixed(
            folder / "out",
            tsv_source(folder / "a.tsv", "caption"),
            shard_size=4,
            seed=seed,
            store_images="once_per_shard" if once else "repeated",
        )
        shards = records(config)
        with plan_dataset(config, "mix") as plan:
            assert plan.count_in == len(rows)
            assert {r.reason for r in plan.rejections()} <= {Reason.DUPLICATE_UID}
        found.append(meaning(shards))
    assert found[0] == found[1]


def write_large(folder: Path, rows: int) -> None:
    """A COCO file with captions before images, all in disorder."""
    draw = random.Random(1)
    ids = list(range(rows))
    draw.shuffle(ids)
    with (folder / "captions.json").open("w") as file:
        file.write('{"annotations": [')
        for i in ids:
            row = {"id": i, "image_id": i // 2, "caption": f"This is caption {i} of an image."}
            file.write(json.dumps(row) + ("," if i != ids[-1] else ""))
        file.write('], "images": [')
        for i in range(rows // 2):
            row = {"id": i, "file_name": f"{i:012d}.jpg", "width": 640, "height": 480}
            file.write(json.dumps(row) + ("," if i < rows // 2 - 1 else ""))
        file.write("]}")


PLAN_ALL = """
import resource, sys
from data_prep.config import DatasetConfig, PrepareConfig, SourceConfig
from data_prep.plan import plan_dataset
folder = sys.argv[1]
source = SourceConfig(reader="coco_captions", images=folder, annotations=f"{folder}/captions.json")
config = PrepareConfig(output_dir=f"{folder}/out", datasets={"a": DatasetConfig(sources=[source])})
with plan_dataset(config, "a") as plan:
    count = sum(len(plan.task(number).records) for number in range(plan.shards))
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    peaks = []
    for rows in (15_000, 150_000):
        folder = tmp_path / str(rows)
        folder.mkdir()
        write_large(folder, rows)
        done = subprocess.run(
            [sys.executable, "-c", PLAN_ALL, str(folder)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        count, peak = map(int, done.stdout.split())
        assert count == rows // 2
        peaks.append(peak / 1024)
    size = (tmp_path / "150000" / "captions.json").stat().st_size
    assert size > 12e6
    # The caches fill up in between; the records alone would take several times as much.
    assert peaks[1] - peaks[0] < 30, f"{peaks} MiB"
