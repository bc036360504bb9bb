from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch

from model.checkpoint import TOKENIZER_FILE, load_config
from model.tokenizer import OFATokenizer
from pipeline.errors import ConfigError, DataError
from pipeline.training.config import DataConfig
from pipeline.training.data import Batch, Collator, ShardReader
from pipeline.training.loader import BatchMaker, Loader, build_order
from tests.support.rewritten import in_format, rewrite
from tests.support.small_world import prepared_world
from tests.support.training_run import small_base


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_world(tmp_path_factory.mktemp("prepared"), scenes=5)


@pytest.fixture(scope="module")
def collate(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Collator:
    base = small_base(tmp_path_factory.mktemp("base") / "base", prepared)
    tokenizer = OFATokenizer.from_file(base / TOKENIZER_FILE)
    return Collator(tokenizer, load_config(str(base)), 48)


@pytest.fixture
def copied(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


def test_every_sample_is_where_the_index_says(prepared: Path) -> None:
    with ShardReader(prepared) as reader:
        assert len(reader) == reader.manifest.samples
        for position in range(len(reader)):
            sample, image = reader.read(position)
            assert (sample.uid, sample.task) == (reader.uids[position], reader.tasks[position])
            assert image.size == (sample.image.width, sample.image.height)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_shared_images_of_other_formats_are_read(
    prepared: Path, tmp_path: Path, image_format: str
) -> None:
    folder = rewrite(prepared, tmp_path / "new", change=in_format(image_format), share=True)
    with ShardReader(folder) as reader:
        for position in range(len(reader)):
            sample, image = reader.read(position)
            assert (image.format, image.size) == (
                image_format,
                (sample.image.width, sample.image.height),
            )
            assert sample.uid == reader.uids[position]
        assert reader.manifest.store_images == "once_per_shard"


def first_shard(folder: Path) -> Path:
    return sorted(folder.glob("shard-*.tar"))[0]


def test_a_missing_shard_is_named(copied: Path) -> None:
    first_shard(copied).unlink()
    with ShardReader(copied) as reader, pytest.raises(DataError, match=r"shard-000000\.tar cannot"):
        reader.read(0)


def test_a_shard_that_was_cut_is_named(copied: Path) -> None:
    shard = first_shard(copied)
    shard.write_bytes(shard.read_bytes()[:-512])
    with ShardReader(copied) as reader, pytest.raises(DataError, match=r"shard-000000\.tar has"):
        reader.read(0)


def test_a_changed_image_is_noticed(copied: Path) -> None:
    shard = first_shard(copied)
    content = bytearray(shard.read_bytes())
    content[600] ^= 1  # the first member's data begin at 512
    shard.write_bytes(content)
    with ShardReader(copied) as reader, pytest.raises(DataError, match="another SHA-256"):
        reader.read(0)


def test_a_changed_index_is_noticed(copied: Path) -> None:
    index = copied / "index.parquet"
    index.write_bytes(index.read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"index\.parquet is corrupt"):
        ShardReader(copied)


def test_batches_are_padded_and_shifted(prepared: Path, collate: Collator) -> None:
    with ShardReader(prepared) as reader:
        batch = collate([reader.read(position) for position in range(len(reader))])
    assert (batch.source_ids_BS[:, 0] == 0).all()
    assert (batch.decoder_ids_BT[:, 0] == 0).all()
    assert batch.tokens == int((batch.target_BT != 1).sum())
    for decoder, target in zip(batch.decoder_ids_BT, batch.target_BT, strict=True):
        length = int((target != 1).sum())
        assert target[length - 1] == 2
        assert torch.equal(decoder[1:length], target[: length - 1])
        assert (decoder[length:] == 1).all()
    assert batch.images_BCHW.shape[1:] == (3, 48, 48)
    assert 0 < float(batch.confidence_B.min()) <= float(batch.confidence_B.max()) <= 1


def test_long_texts_are_cut(prepared: Path, collate: Collator) -> None:
    short = Collator(
        collate._tokenizer, collate._config, 48, max_source_length=5, max_target_length=3
    )
    with ShardReader(prepared) as reader:
        batch = short([reader.read(position) for position in range(len(reader))])
    assert batch.source_ids_BS.shape[1] == 5
    assert batch.target_BT.shape[1] == 3
    assert (batch.source_ids_BS == 2).sum(dim=1).tolist() == [1] * len(batch.uids)


def steps(
    prepared: Path, collate: Collator, *, rank: int, ranks: int, workers: int, first: int = 0
) -> list[list[Batch]]:
    with ShardReader(prepared) as reader:
        order = build_order([reader], DataConfig(streams=8), seed=4)
        with Loader(
            order,
            BatchMaker([reader], collate, seed=4),
            rank=rank,
            ranks=ranks,
            batch_size=4 // ranks,
            accumulation=2,
            workers=workers,
        ) as loader:
            return list(loader.steps(first, 9))


def test_ranks_workers_and_resuming_do_not_change_what_is_seen(
    prepared: Path, collate: Collator
) -> None:
    alone = steps(prepared, collate, rank=0, ranks=1, workers=0)
    assert len(alone) == 9
    pair = [steps(prepared, collate, rank=rank, ranks=2, workers=2) for rank in (0, 1)]
    late = steps(prepared, collate, rank=0, ranks=1, workers=1, first=6)
    for step, batches in enumerate(alone):
        seen = sorted(uid for batch in batches for uid in batch.uids)
        assert seen == sorted(uid for one in pair for batch in one[step] for uid in batch.uids)
        if step >= 6:
            again = late[step - 6]
            assert [batch.uids for batch in again] == [batch.uids for batch in batches]
            assert torch.equal(again[0].target_BT, batches[0].target_BT)


def test_an_error_in_the_background_arrives(copied: Path, collate: Collator) -> None:
    for shard in copied.glob("shard-*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(DataError, match="corrupt"):
        steps(copied, collate, rank=0, ranks=1, workers=1)


def test_only_wanted_tasks_are_drawn(prepared: Path) -> None:
    with ShardReader(prepared) as reader:
        order = build_order([reader], DataConfig(tasks=["vqa"], streams=2), seed=0)
        assert {reader.tasks[order.at(place).row] for place in range(60)} == {"vqa"}


def test_a_task_without_samples_is_refused(prepared: Path) -> None:
    with ShardReader(prepared) as reader:
        with pytest.raises(DataError, match="no samples of task 'rebus'"):
            build_order([reader], DataConfig(tasks=["rebus"]), seed=0)
        with pytest.raises(DataError, match="task_weights names 'rebus'"):
            build_order([reader], DataConfig(task_weights={"rebus": 1.0}), seed=0)
        with pytest.raises(ConfigError, match="too few for 5000 streams"):
            build_order([reader], DataConfig(streams=5000, uneven="drop"), seed=0)


def test_targets_are_chosen_by_the_place(prepared: Path, collate: Collator) -> None:
    with ShardReader(prepared) as reader:
        record = reader.read(reader.tasks.index("caption"))
    assert len(set(record[0].references)) > 1
    targets = {
        tuple(collate([record], [random.Random(f"{n}")]).target_BT[0].tolist()) for n in range(30)
    }
    assert len(targets) > 1
