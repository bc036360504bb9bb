"""Prepared data as training sees it: samples read at their offsets, and batches of them."""

from __future__ import annotations

import hashlib
import io
import os
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data_prep.manifest import INDEX_NAME, Manifest, read_manifest
from data_prep.schema import IMAGE_EXTENSIONS, Sample
from model.images import to_pixels
from model.ofa.config import OFAConfig
from model.tokenizer import OFATokenizer
from pipeline.errors import DataError
from pipeline.tasks.registry import get_task

_OFFSETS = ("shard", "image_offset", "image_size", "json_offset", "json_size")


class ShardReader:
    """Any sample of a prepared data set, read at its offset in its shard.

    Safe to use from several threads. A shard is opened, and its size compared with the manifest,
    when its first sample is read.
    """

    def __init__(self, folder: str | Path) -> None:
        """Reads manifest and index.

        Raises:
            DataError: they are missing or damaged.
        """
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(self.folder)
        index = self._read_index()
        self.tasks: list[str] = index["task"].to_pylist()
        """Task of each sample."""
        self.uids: list[str] = index["uid"].to_pylist()
        """Uid of each sample."""
        columns = {name: index[name].to_numpy().astype(np.int64) for name in _OFFSETS}
        self.shards: NDArray[np.int64] = columns["shard"]
        """Number of the shard of each sample."""
        self._images = columns["image_offset"], columns["image_size"]
        self._records = columns["json_offset"], columns["json_size"]
        self._files: dict[int, int] = {}
        self._opening = threading.Lock()

    def __len__(self) -> int:
        return len(self.tasks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the shards."""
        while self._files:
            os.close(self._files.popitem()[1])

    def read(self, position: int) -> tuple[Sample, Image.Image]:
        """The sample at a place of the data set, and its stored image, decoded.

        Raises:
            DataError: the shard is missing, cut short, or its bytes are not what was prepared.
        """
        shard = int(self.shards[position])
        path = self.folder / self.manifest.shards[shard].name
        record = self._pread(shard, self._records, position)
        try:
            sample = Sample.from_json(record)
        except DataError as error:
            raise DataError(f"{path} is corrupt at {self.uids[position]!r}: {error}") from error
        if sample.uid != self.uids[position]:
            raise DataError(
                f"{path} is corrupt: {sample.uid!r} where the index says {self.uids[position]!r}"
            )
        content = self._pread(shard, self._images, position)
        if hashlib.sha256(content).hexdigest() != sample.image.sha256:
            raise DataError(f"{path} is corrupt: the image of {sample.uid!r} has another SHA-256")
        try:
            image = Image.open(io.BytesIO(content), formats=tuple(IMAGE_EXTENSIONS))
            image.load()
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: the image of {sample.uid!r} cannot be read") from error
        return sample, image

    def _pread(
        self, shard: int, member: tuple[NDArray[np.int64], NDArray[np.int64]], position: int
    ) -> bytes:
        offset, size = int(member[0][position]), int(member[1][position])
        content = os.pread(self._open(shard), size, offset)
        if len(content) != size:
            path = self.folder / self.manifest.shards[shard].name
            raise DataError(f"{path} is cut short: nothing at byte {offset + len(content)}")
        return content

    def _open(self, shard: int) -> int:
        with self._opening:
            if shard not in self._files:
                info = self.manifest.shards[shard]
                path = self.folder / info.name
                try:
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise DataError(f"{path} cannot be opened: {error.strerror}") from error
                size = os.fstat(descriptor).st_size
                if size != info.bytes:
                    os.close(descriptor)
                    raise DataError(f"{path} has {size} bytes, its manifest says {info.bytes}")
                self._files[shard] = descriptor
            return self._files[shard]

    def _read_index(self) -> pa.Table:
        path = self.folder / INDEX_NAME
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != self.manifest.index["sha256"]:
            raise DataError(f"{path} is corrupt: its SHA-256 is not the manifest's")
        return pq.read_table(io.BytesIO(content), columns=["uid", "task", *_OFFSETS])


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples as the model takes them; B samples, S source and T target tokens, right-padded."""

    uids: tuple[str, ...]
    tasks: tuple[str, ...]
    samples: tuple[Sample, ...]
    source_ids_BS: Tensor
    """int64, bos first, eos last."""
    images_BCHW: Tensor
    """float32, scaled to -1..1."""
    image_present_B: Tensor
    """bool."""
    decoder_ids_BT: Tensor
    """int64, bos and the target."""
    target_BT: Tensor
    """int64, the target and eos; pad where there is no label."""
    confidence_B: Tensor
    """float32, weight of a sample in the loss."""
    tokens: int
    """Labelled tokens."""

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on a device."""
        if device.type == "cpu":
            return self
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return Batch(**{**vars(self), **moved})

    def twice(self) -> Batch:
        """The batch and, behind it, the same samples again: two passes of dropout in one."""
        doubled: dict[str, Any] = {
            name: torch.cat([value, value]) if isinstance(value, Tensor) else 2 * value
            for name, value in vars(self).items()
        }
        return Batch(**doubled)


class Collator:
    """Turns samples and their images into batches for one base."""

    def __init__(
        self,
        tokenizer: OFATokenizer,
        config: OFAConfig,
        image_size: int,
        *,
        max_source_length: int = 80,
        max_target_length: int = 160,
    ) -> None:
        """Prepares to make batches.

        Args:
            tokenizer: The base's.
            config: The base's.
            image_size: Side in pixels of the square that images are resized to.
            max_source_length: Tokens of an instruction that are kept, bos and eos included.
            max_target_length: Tokens of a target that are kept, eos included.
        """
        self._tokenizer = tokenizer
        self._config = config
        self._image_size = image_size
        self._max_source_length = max_source_length
        self._max_target_length = max_target_length

    def __call__(
        self,
        records: Sequence[tuple[Sample, Image.Image]],
        rngs: Sequence[random.Random] | None = None,
    ) -> Batch:
        """Makes a batch.

        Args:
            records: Samples with their stored images.
            rngs: For each sample, what chooses among its right targets; None takes the first.

        Raises:
            DataError: a sample has no target.
        """
        vocab = self._config.vocab
        samples = tuple(sample for sample, _ in records)
        sources = [self._source(sample) for sample in samples]
        targets = [
            self._target(sample, rngs[at] if rngs else None) for at, sample in enumerate(samples)
        ]
        return Batch(
            uids=tuple(sample.uid for sample in samples),
            tasks=tuple(sample.task for sample in samples),
            samples=samples,
            source_ids_BS=_pad([[vocab.bos, *ids, vocab.eos] for ids in sources], vocab.pad),
            images_BCHW=torch.stack([to_pixels(image, self._image_size) for _, image in records]),
            image_present_B=torch.ones(len(samples), dtype=torch.bool),
            decoder_ids_BT=_pad([[vocab.bos, *ids] for ids in targets], vocab.pad),
            target_BT=_pad([[*ids, vocab.eos] for ids in targets], vocab.pad),
            confidence_B=torch.tensor([get_task(s.task).confidence(s) for s in samples]),
            tokens=sum(len(ids) + 1 for ids in targets),
        )

    def _source(self, sample: Sample) -> list[int]:
        return self._tokenizer.encode(sample.instruction)[: self._max_source_length - 2]

    def _target(self, sample: Sample, rng: random.Random | None) -> list[int]:
        task = get_task(sample.task)
        ids = task.target_ids(sample, self._tokenizer, self._config, self._image_size, rng)
        return ids[: self._max_target_length - 1]


def _pad(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
