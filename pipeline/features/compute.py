"""Computing the features of one shard's images; knows nothing of where it runs."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import load_base
from model.images import to_pixels
from model.ofa import OFA
from pipeline.errors import DataError
from pipeline.features.record import (
    FeatureFile,
    FeatureKind,
    file_sha256,
    list_path,
    read_list,
    records_path,
    trunk_fingerprint,
    whole_file,
    write_list,
)
from pipeline.training.data import ShardReader

Named = tuple[str, Tensor]
"""SHA-256 of a stored image, and its pixels or its features."""


@dataclass(frozen=True, kw_only=True)
class FeatureTask:
    """One shard whose images' features are wanted."""

    dataset: str
    base: str
    shard: int
    sha256: str
    """Of the shard, by the data set's manifest."""
    kind: FeatureKind
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Computed:
    """What became of a task."""

    shard: int
    images: int
    list_sha256: str
    """Of the list of records."""
    kept: bool
    """Whether it was there already."""


def kind_of(base: OFA, *, image_size: int, precision: str, batch_size: int) -> FeatureKind:
    """Describes what features a base's trunk gives images in this setting."""
    probe = _trunk_of(base, precision)(torch.zeros(1, 3, image_size, image_size))
    channels, rows, columns = probe.shape[1:]
    return FeatureKind(
        trunk=trunk_fingerprint(base.encoder.embed_images),
        image_size=image_size,
        precision=precision,
        batch_size=batch_size,
        shape=(rows, columns, channels),
        versions={name: version(name) for name in ("pillow", "torch")},
    )


def compute_shard(task: FeatureTask) -> Computed:
    """Writes the features of a shard's images, unless they are there and whole.

    Raises:
        DataError: the shard is damaged, the folder cannot be written, or this machine has another
            base or other libraries than the one that asks.
    """
    path = list_path(task.folder, task.shard)
    file, kept = _finished(task, path), True
    if file is None:
        file, kept = _computed(task), False
        write_list(path, task.kind, file)
    return Computed(
        shard=task.shard, images=len(file.images), list_sha256=file_sha256(path), kept=kept
    )


def _finished(task: FeatureTask, path: Path) -> FeatureFile | None:
    """What an earlier run made of the task; None where it is missing, other or damaged."""
    try:
        kind, file = read_list(path)
        whole = file_sha256(records_path(task.folder, task.shard)) == file.sha256
    except DataError:
        return None  # made again, which says what is wrong if that does not help
    return file if whole and kind == task.kind and file.shard == task.sha256 else None


def _computed(task: FeatureTask) -> FeatureFile:
    trunk = _checked_trunk(task)
    torch.set_num_threads(1)  # a worker has one CPU
    digest = hashlib.sha256()
    images, checksums = [], []
    records = records_path(task.folder, task.shard)
    # A list beside other records would be worse than none.
    list_path(task.folder, task.shard).unlink(missing_ok=True)
    with ShardReader(task.dataset) as reader, whole_file(records) as file:
        pixels = _distinct_images(reader, task.shard, task.kind.image_size)
        for name, features_HWC in _features(pixels, trunk, task.kind):
            record = _bytes(features_HWC)
            if not bool(features_HWC.isfinite().all()):
                raise DataError(
                    f"the image {name} of shard {task.shard} has features that are no"
                    " finite numbers: choose precision fp32, or look at the base"
                )
            digest.update(record)
            images.append(name)
            checksums.append(zlib.crc32(record))
            file.write(record)
    return FeatureFile(
        shard=task.sha256,
        sha256=digest.hexdigest(),
        images=tuple(images),
        crc32=tuple(checksums),
    )


def _checked_trunk(task: FeatureTask) -> Callable[[Tensor], Tensor]:
    kind = task.kind
    base = _loaded(task.base)
    own = kind_of(
        base, image_size=kind.image_size, precision=kind.precision, batch_size=kind.batch_size
    )
    for name in ("trunk", "versions", "shape"):
        if getattr(own, name) != getattr(kind, name):
            raise DataError(
                f"{name} is {getattr(own, name)} on this node and {getattr(kind, name)} where the"
                " job began: the same base and libraries are needed on all nodes"
            )
    return _trunk_of(base, kind.precision)


@cache
def _loaded(base: str) -> OFA:
    return load_base(base).freeze()


def _trunk_of(base: OFA, precision: str) -> Callable[[Tensor], Tensor]:
    """The trunk as training runs it: folded, in the dtype that the run computes in."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return base.image_trunk()


def _distinct_images(reader: ShardReader, shard: int, size: int) -> Iterator[Named]:
    """Pixels `[3, size, size]` of each stored image of a shard, equal ones once."""
    seen: set[str] = set()
    for row in np.flatnonzero(reader.index.shards == shard):
        sample, image = reader.read(int(row))
        if sample.image.sha256 not in seen:
            seen.add(sample.image.sha256)
            yield sample.image.sha256, to_pixels(image, size)


def _features(
    pixels: Iterable[Named], trunk: Callable[[Tensor], Tensor], kind: FeatureKind
) -> Iterator[Named]:
    """Features `[rows, columns, channels]` of images, always computed for whole batches."""
    coming = iter(pixels)
    while part := list(islice(coming, kind.batch_size)):
        images_BCHW = torch.stack([image for _, image in part])
        # Another number of images would be computed in another order of additions.
        missing = kind.batch_size - len(part)
        filled_BCHW = torch.cat([images_BCHW, images_BCHW[-1:].expand(missing, -1, -1, -1)])
        features_BHWC = trunk(filled_BCHW).permute(0, 2, 3, 1)
        yield from zip(_names(part), features_BHWC, strict=False)


def _names(part: Sequence[Named]) -> list[str]:
    return [name for name, _ in part]


def _bytes(features_HWC: Tensor) -> bytes:
    raw: bytes = features_HWC.contiguous().view(torch.uint8).numpy().tobytes()
    return raw
