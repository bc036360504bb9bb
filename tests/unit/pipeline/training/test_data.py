from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from data_prep.schema import Sample
from model.checkpoint import TOKENIZER_FILE, load_config
from model.tokenizer import OFATokenizer
from pipeline.errors import ConfigError, DataError
from pipeline.training.assembly import PlacedSample
from pipeline.training.data import Batch, Collator, ShardReader
from pipeline.training.data_config import DataConfig
from pipeline.training.loader import BatchMaker, Loader, build_order, pins_memory
from pipeline.training.order import SampleRef
from pipeline.training.workers import Kind
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


def limited(collate: Collator, *, source: int = 80, target: int = 160) -> Collator:
    return Collator(
        collate._tokenizer,
        collate._config,
        48,
        max_source_length=source,
        max_target_length=target,
    )


def of_tasks(reader: ShardReader, *tasks: str) -> list[tuple[Sample, Image.Image]]:
    return [reader.read(row) for row, task in enumerate(reader.tasks) if task in tasks]


def test_long_texts_are_cut_and_counted(prepared: Path, collate: Collator) -> None:
    with ShardReader(prepared) as reader:
        records = of_tasks(reader, "caption", "vqa", "entailment")
    whole, batch = (c(records) for c in (collate, limited(collate, source=5, target=3)))
    assert (whole.cut_sources, whole.cut_targets) == (0, 0)
    assert batch.source_ids_BS.shape[1] == 5
    assert batch.target_BT.shape[1] == 3
    assert (batch.source_ids_BS == 2).sum(dim=1).tolist() == [1] * len(batch.uids)
    assert batch.cut_sources == int(((whole.source_ids_BS != 1).sum(dim=1) > 5).sum())
    assert batch.cut_targets == int(((whole.target_BT != 1).sum(dim=1) > 3).sum())
    assert 0 < batch.cut_targets < len(records)


def test_objects_are_left_out_whole(prepared: Path, collate: Collator) -> None:
    with ShardReader(prepared) as reader:
        records = of_tasks(reader, "detection")
    whole = collate(records)
    first_bin = collate._config.vocab.bin_first
    # Tokens of the longest first object: four bins, its label, and eos or the next one's bin.
    least = 1 + max(
        next(at for at, token in enumerate(row) if at > 4 and (token >= first_bin or token == 2))
        for row in whole.target_BT.tolist()
    )
    shorter = 0
    for limit in range(whole.target_BT.shape[1], least - 1, -1):
        batch = limited(collate, target=limit)(records)
        for row, (cut, full) in enumerate(zip(batch.target_BT, whole.target_BT, strict=True)):
            said = cut[cut > 2].tolist()
            objects = sum(token >= first_bin for token in said) // 4
            assert len(said) < limit
            # The same ids as far as they go, no box without its four bins and its label.
            assert said == full[: len(said)].tolist()
            assert sum(token >= first_bin for token in said) == 4 * objects
            assert full[len(said)] == 2 or full[len(said)] >= first_bin
            shorter += objects < len(records[row][0].boxes)
    assert shorter > 0
    with pytest.raises(DataError, match=f"max_target_length = {least - 1} tokens are too few"):
        limited(collate, target=least - 1)(records)


def test_a_box_is_never_cut(prepared: Path, collate: Collator) -> None:
    with ShardReader(prepared) as reader:
        records = of_tasks(reader, "grounding")
    assert limited(collate, target=5)(records).target_BT.equal(collate(records).target_BT)
    with pytest.raises(DataError, match=r"max_target_length = 4 tokens are too few for the ground"):
        limited(collate, target=4)(records)


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


def test_pinned_memory_is_for_cuda() -> None:
    assert not pins_memory(None, torch.device("cpu"))
    assert pins_memory(None, torch.device("cuda", 1))
    assert pins_memory(True, torch.device("cuda"))
    assert not pins_memory(False, torch.device("cuda"))
    with pytest.raises(ConfigError, match="pin_memory = True: the ranks compute on cpu"):
        pins_memory(True, torch.device("cpu"))


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_both_kinds_of_workers_pin_what_they_make(
    prepared: Path, collate: Collator, kind: Kind
) -> None:
    with ShardReader(prepared) as reader:
        order = build_order([reader], DataConfig(streams=4), seed=0)
        shape = {"rank": 0, "ranks": 1, "batch_size": 2, "accumulation": 1, "workers": 1}
        make = BatchMaker([reader], collate, 0)
        with Loader(order, make, **shape, kind=kind, pin=True) as loader:
            if torch.cuda.is_available():
                (batch,) = next(loader.steps(0, 1))
                tensors = [v for v in vars(batch).values() if isinstance(v, torch.Tensor)]
                assert all(tensor.is_pinned() for tensor in tensors)
            else:
                # Only an accelerator's runtime can pin; that it is asked is what shows here.
                with pytest.raises(RuntimeError, match=r"accelerator|CUDA"):
                    next(loader.steps(0, 1))


@pytest.mark.parametrize(("ahead", "workers", "expected"), [(1, 1, 2), (5, 1, 5), (2, 8, 5)])
def test_so_many_steps_are_made_ahead(
    prepared: Path, collate: Collator, ahead: int, workers: int, expected: int
) -> None:
    with ShardReader(prepared) as reader:
        order = build_order([reader], DataConfig(streams=4), seed=0)
        asked: list[int] = []

        class Counting(BatchMaker):
            def locate(self, refs: Sequence[SampleRef]) -> list[PlacedSample]:
                asked.append(len(refs))
                return super().locate(refs)

        shape = {"rank": 0, "ranks": 1, "batch_size": 1, "accumulation": 2, "workers": workers}
        make = Counting([reader], collate, 0)
        with Loader(order, make, **shape, steps_ahead=ahead) as loader:
            steps = loader.steps(0, 40)
            next(steps)
            # The step that came, those ahead of it, and the one that took its place.
            assert len(asked) == 2 * (expected + 1)
