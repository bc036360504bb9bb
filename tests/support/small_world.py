"""A small prepared dataset of the embedded world, made by the real steps in this process."""

from __future__ import annotations

from pathlib import Path

from data_prep.config import DatasetConfig, PrepareConfig, SourceConfig
from data_prep.dataset import finish, locked
from data_prep.plan import plan_dataset
from data_prep.shard_job import build_shard
from data_prep.synthetic import write_world


def world_sources(world: Path, split: str) -> list[SourceConfig]:
    """Every annotation of a split of a world."""
    images = str(world / "images" / split)
    return [
        SourceConfig(
            reader="coco_captions",
            images=images,
            annotations=str(world / f"captions_{split}.json"),
            split=split,
        ),
        SourceConfig(
            reader="vqav2",
            images=images,
            questions=str(world / f"vqa_questions_{split}.json"),
            annotations=str(world / f"vqa_annotations_{split}.json"),
            split=split,
        ),
        SourceConfig(
            reader="refer",
            images=str(world / "images"),
            annotations=str(world / "refer" / "refs(synth).p"),
            instances=str(world / "refer" / "instances.json"),
            split=split,
        ),
        SourceConfig(
            reader="snli_ve",
            images=images,
            annotations=str(world / f"snli_ve_{split}.jsonl"),
            split=split,
        ),
        SourceConfig(
            reader="coco_instances",
            images=images,
            annotations=str(world / f"detection_{split}.json"),
            split=split,
        ),
    ]


def prepared_world(
    folder: Path,
    *,
    scenes: int = 6,
    split: str = "test",
    domain: str = "downstream",
    name: str = "world",
    shard_size: int = 20,
) -> Path:
    """Draws scenes and prepares them, without Ray; returns the dataset's folder."""
    write_world(folder / "raw", domain=domain, scenes={split: scenes}, seed=7, processes=1)
    config = PrepareConfig(
        output_dir=str(folder / "prepared"),
        datasets={name: DatasetConfig(sources=world_sources(folder / "raw", split))},
        shard_size=shard_size,
    )
    return prepare_in_process(config, name)


def prepare_in_process(config: PrepareConfig, name: str) -> Path:
    """Prepares one dataset of a configuration, without Ray; returns its folder."""
    plan = plan_dataset(config, name)
    with locked(plan.folder):
        for number in range(plan.shards):
            build_shard(plan.task(number))
        finish(plan, config.max_reject_rate)
    return plan.folder
