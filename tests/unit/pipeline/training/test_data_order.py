"""What a run sees, in order, of real prepared shards: whatever the ranks, workers and stops."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_prep.config import DatasetConfig, PrepareConfig
from data_prep.synthetic import write_world
from model.checkpoint import TOKENIZER_FILE, load_config
from model.tokenizer import OFATokenizer
from pipeline.training.data import Batch, Collator, ShardReader
from pipeline.training.data_config import DataConfig
from pipeline.training.loader import BatchMaker, Loader, build_order
from pipeline.training.shard_files import FolderShards
from pipeline.training.workers import Kind
from tests.support.small_world import prepare_in_process, world_sources
from tests.support.training_run import small_base

SEED = 4
STREAMS = 8
GLOBAL_BATCH = 16
STEPS = 12

KINDS = ("many shards", "one shard", "empty shards", "shared images")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A prepared data set of each kind, from the same raw files."""
    root = tmp_path_factory.mktemp("order")
    world = root / "raw"
    write_world(world, domain="downstream", scenes={"test": 6}, seed=7, processes=1)
    config = PrepareConfig(
        output_dir=str(root / "prepared"),
        datasets={
            name: DatasetConfig(sources=world_sources(world, "test"))
            for name in ("many", "one", "shared", "empty")
        },
        max_reject_rate=1.0,
    )
    found = {
        # 100-odd samples: the last shard has fewer than the others.
        "many shards": prepare_in_process(replace(config, shard_size=11), "many"),
        "one shard": prepare_in_process(replace(config, shard_size=10_000), "one"),
        "shared images": prepare_in_process(
            replace(config, shard_size=20, store_images="once_per_shard"), "shared"
        ),
    }
    for image in sorted((world / "images" / "test").iterdir())[::2]:
        image.unlink()
    found["empty shards"] = prepare_in_process(replace(config, shard_size=2), "empty")
    return found


@pytest.fixture(scope="module")
def collate(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> Collator:
    base = small_base(tmp_path_factory.mktemp("base") / "base", folders["one shard"])
    tokenizer = OFATokenizer.from_file(base / TOKENIZER_FILE)
    return Collator(tokenizer, load_config(str(base)), 32)


def run(
    reader: ShardReader,
    collate: Collator,
    *,
    ranks: int,
    workers: int,
    first: int,
    last: int,
    kind: Kind = "threads",
) -> list[str]:
    """Uids of steps in the order of the run: the ranks take turns in it."""
    config = DataConfig(streams=STREAMS)
    of_ranks: list[list[list[Batch]]] = []
    for rank in range(ranks):
        with Loader(
            build_order([reader], config, SEED),
            BatchMaker([reader], collate, SEED),
            rank=rank,
            ranks=ranks,
            batch_size=GLOBAL_BATCH // ranks // 2,
            accumulation=2,
            workers=workers,
            kind=kind,
        ) as loader:
            of_ranks.append(list(loader.steps(first, last)))
    seen = []
    for step in range(last - first):
        rows = [[uid for batch in own[step] for uid in batch.uids] for own in of_ranks]
        seen += [uid for turn in zip(*rows, strict=True) for uid in turn]
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_is_that_of_one_rank(
    kind: str, folders: dict[str, Path], collate: Collator
) -> None:
    with ShardReader(folders[kind]) as reader:
        alone = run(reader, collate, ranks=1, workers=0, first=0, last=STEPS)
        assert len(alone) == STEPS * GLOBAL_BATCH
        for ranks, workers in ((1, 3), (2, 0), (2, 2), (4, 1)):
            again = run(reader, collate, ranks=ranks, workers=workers, first=0, last=STEPS)
            assert again == alone, (ranks, workers)


def test_worker_processes_make_the_same_batches(
    folders: dict[str, Path], collate: Collator
) -> None:
    with ShardReader(folders["many shards"]) as reader:
        alone = run(reader, collate, ranks=1, workers=0, first=0, last=6)
        pair = run(reader, collate, ranks=2, workers=2, first=0, last=4, kind="processes")
        rest = run(reader, collate, ranks=1, workers=1, first=4, last=6, kind="processes")
        assert pair + rest == alone
        order = build_order([reader], DataConfig(streams=STREAMS), SEED)
        make = BatchMaker([reader], collate, SEED)
        sizes = {"rank": 0, "ranks": 1, "batch_size": 8, "accumulation": 1}
        batches = []
        for workers, kind in ((0, "threads"), (1, "processes")):
            with Loader(order, make, workers=workers, kind=kind, **sizes) as loader:  # type: ignore[arg-type]
                batches.append(next(loader.steps(3, 4))[0])
    for name, value in vars(batches[0]).items():
        other = getattr(batches[1], name)
        assert torch.equal(other, value) if isinstance(value, torch.Tensor) else other == value


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_continues_in_an_epoch_with_other_ranks(
    kind: str, folders: dict[str, Path], collate: Collator
) -> None:
    with ShardReader(folders[kind]) as reader:
        whole = run(reader, collate, ranks=2, workers=1, first=0, last=STEPS)
        for stop, ranks in ((3, 4), (5, 1), (11, 2)):
            before = run(reader, collate, ranks=2, workers=1, first=0, last=stop)
            after = run(reader, collate, ranks=ranks, workers=2, first=stop, last=STEPS)
            assert before + after == whole, (stop, ranks)


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_of_the_loader_has_every_sample(
    kind: str, folders: dict[str, Path], collate: Collator
) -> None:
    with ShardReader(folders[kind]) as reader:
        length = build_order([reader], DataConfig(streams=STREAMS), SEED).epoch_length
        steps = -(-length // GLOBAL_BATCH)
        seen = Counter(run(reader, collate, ranks=2, workers=0, first=0, last=steps)[:length])
        assert set(seen) == set(reader.uids)
        assert length - len(reader) < STREAMS


def test_the_kinds_are_what_they_are_called(folders: dict[str, Path]) -> None:
    samples = {}
    for kind, folder in folders.items():
        with ShardReader(folder) as reader:
            samples[kind] = [shard.samples for shard in reader.manifest.shards]
            assert (reader.manifest.store_images == "once_per_shard") == (kind == "shared images")
    assert len(set(samples["many shards"])) > 1
    assert len(samples["one shard"]) == 1
    assert 0 in samples["empty shards"]
    assert max(samples["empty shards"]) > 0


def test_continuing_reads_nothing_of_what_came_before(
    folders: dict[str, Path], collate: Collator
) -> None:
    with ShardReader(folders["many shards"]) as reader:
        run(reader, collate, ranks=1, workers=0, first=0, last=STEPS)  # opens every shard
        before, asking = bytes_read()
        seen = run(reader, collate, ranks=1, workers=0, first=STEPS - 1, last=STEPS)
        taken = bytes_read()[0] - before - asking
        rows = {uid: row for row, uid in enumerate(reader.uids)}
        addresses = [reader.index.address(rows[uid]) for uid in seen]
    assert taken == sum(address.image_size + address.json_size for address in addresses)


def bytes_read() -> tuple[int, int]:
    """Bytes that this process has read by system calls so far, and those that asking reads."""
    text = Path("/proc/self/io").read_text()
    return int(text.split()[1]), len(text)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_more_shards_than_may_be_open_are_read(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FolderShards, "keep_open", 3)
    before = open_files()
    with ShardReader(folders["many shards"]) as reader:
        assert len(reader.manifest.shards) > 3
        for row in reversed(range(len(reader))):
            assert reader.read(row)[0].uid == reader.uids[row]
            assert open_files() <= before + 3
    assert open_files() == before
