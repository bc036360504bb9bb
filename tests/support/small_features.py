"""The features of a small data set's images, computed in this process."""

from __future__ import annotations

from pathlib import Path

from data_prep.manifest import read_manifest
from model.checkpoint import load_base
from pipeline.features.compute import Computed, FeatureTask, compute_shard, kind_of
from pipeline.features.record import FeatureManifest


def feature_tasks(
    folder: Path, data: Path, base: Path, *, precision: str = "fp32", batch_size: int = 2
) -> list[FeatureTask]:
    """What has to be computed, a shard a task."""
    model = load_base(str(base)).freeze()
    size = model.config.image_size
    kind = kind_of(model, image_size=size, precision=precision, batch_size=batch_size)
    folder.mkdir(exist_ok=True)
    return [
        FeatureTask(
            dataset=str(data),
            base=str(base),
            shard=number,
            sha256=shard.sha256,
            kind=kind,
            folder=folder,
        )
        for number, shard in enumerate(read_manifest(data).shards)
    ]


def write_features(
    folder: Path, data: Path, base: Path, *, precision: str = "fp32", batch_size: int = 2
) -> list[Computed]:
    """Computes all of them."""
    tasks = feature_tasks(folder, data, base, precision=precision, batch_size=batch_size)
    done = [compute_shard(task) for task in tasks]
    FeatureManifest(
        dataset=read_manifest(data).digest,
        kind=tasks[0].kind,
        files=tuple(computed.list_sha256 for computed in done),
        images=sum(computed.images for computed in done),
    ).save(folder)
    return done
