"""`prefixworks features`: what the frozen image trunk makes of a data set's images, on Ray.

prefixworks features --dataset=data/prepared/refcoco_train --base=data/bases/ofa_large
"""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from data_prep.manifest import Manifest, read_manifest
from data_prep.stores import absolute_location
from jobs.prepare_progress import Steps
from pipeline.config_reader import parse
from pipeline.errors import DataError
from pipeline.features.config import FeaturesConfig

if TYPE_CHECKING:
    from pipeline.features.compute import Computed, FeatureTask
    from pipeline.features.record import FeatureKind

_LOCK = ".lock"


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    config, dry_run = parse(
        FeaturesConfig,
        argv,
        prog="prefixworks features",
        description="Compute what the frozen image trunk makes of a data set's images, once.",
    )
    # Here, because torch takes seconds to import and `--help` must not wait.
    from model.checkpoint import load_base
    from pipeline.features.compute import kind_of

    manifest = read_manifest(config.dataset)
    base = load_base(config.base).freeze()
    kind = kind_of(
        base,
        image_size=config.image_size or base.config.image_size,
        precision=config.precision,
        batch_size=config.batch_size,
    )
    folder = config.folder(kind.image_size).absolute()
    if dry_run:
        most = manifest.samples * kind.record_bytes / 1e9
        print(
            f"would compute features of {manifest.samples} samples in {len(manifest.shards)} shards"
            f" into {folder}: {kind.record_bytes / 1e3:.0f} kB an image, at most {most:.3g} GB"
        )
        return 0
    with _locked(folder):
        compute_features(config, manifest, kind, folder, Console())
    return 0


def compute_features(
    config: FeaturesConfig, manifest: Manifest, kind: FeatureKind, folder: Path, console: Console
) -> None:
    """Computes what is missing; finished shards are checked and kept.

    Args:
        config: Where from, and on which cluster.
        manifest: Of the data set.
        kind: What the features are of.
        folder: Where they go, seen by all nodes.
        console: Where progress and the result are shown.

    Raises:
        DataError: The data are damaged, the folder cannot be written, or there is no cluster.
    """
    # Ray takes seconds to import.
    from data_prep.ray_job import cluster, run_tasks
    from pipeline.features.compute import compute_shard
    from pipeline.features.record import FeatureManifest, withdraw

    withdraw(folder, manifest.digest, kind, len(manifest.shards))
    done: dict[int, Computed] = {}
    with cluster(config.address, config.workers) as capacity, Steps(console, "features") as steps:
        steps.begin("computing", len(manifest.shards))

        def on_result(computed: Computed) -> None:
            done[computed.shard] = computed
            steps.advance(len(done), "shards")

        tasks = _tasks(config, manifest, kind, folder)
        run_tasks(compute_shard, ((task.shard, (task,)) for task in tasks), capacity, on_result)
    images = sum(computed.images for computed in done.values())
    FeatureManifest(
        dataset=manifest.digest,
        kind=kind,
        files=tuple(done[shard].list_sha256 for shard in range(len(manifest.shards))),
        images=images,
    ).save(folder)
    kept = sum(computed.kept for computed in done.values())
    size = images * kind.record_bytes / 1e9
    console.print(
        f"{folder}: features of {images} images in {len(done)} shards, {kept} of them kept,"
        f" {size:.3g} GB",
        highlight=False,
        soft_wrap=True,
    )


def _tasks(
    config: FeaturesConfig, manifest: Manifest, kind: FeatureKind, folder: Path
) -> Iterator[FeatureTask]:
    from model.checkpoint import PACKAGED_BASES
    from pipeline.features.compute import FeatureTask

    # Workers have another working directory.
    packaged = config.base in PACKAGED_BASES
    base = config.base if packaged else str(Path(config.base).absolute())
    for number, shard in enumerate(manifest.shards):
        yield FeatureTask(
            dataset=absolute_location(config.dataset),
            base=base,
            shard=number,
            sha256=shard.sha256,
            kind=kind,
            folder=folder,
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps the folder for this run; DataError when another one has it or it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("ab")
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{folder}: features are being computed there already") from error
        yield


if __name__ == "__main__":
    from jobs.cli import run_stage

    sys.exit(run_stage(main, sys.argv[1:]))
