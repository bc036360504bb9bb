"""Prepared data as training sees it: samples read at their offsets, and batches of them."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from PIL import Image
from torch import Tensor

from data_prep.manifest import INDEX_NAME, Manifest, read_manifest
from data_prep.schema import Sample
from data_prep.stores import file_location, is_remote
from model.constraints import Allowed, Constraint, allowed_tokens, allowed_twice
from model.images import to_pixels
from model.ofa.config import OFAConfig
from model.tokenizer import OFATokenizer
from pipeline.errors import DataError
from pipeline.tasks.base import Task, constraint_of
from pipeline.tasks.registry import get_task
from pipeline.training.data_config import DEFAULT_CACHE_GB
from pipeline.training.index import SampleIndex
from pipeline.training.shard_cache import GB, CachedShards, FileCache, default_cache_dir
from pipeline.training.shard_files import FolderShards, Record, ShardFiles, ShardSource


class ShardReader:
    """Any sample of a prepared data set, read at its offset in its shard.

    Safe to use from several threads. A shard is opened, and its size compared with the manifest,
    when its first sample is read.
    """

    def __init__(self, folder: str | Path, cache: FileCache | None = None) -> None:
        """Reads manifest and index.

        Args:
            folder: The data set's folder, or its location in an object store.
            cache: Keeps what comes from an object store; None takes the usual one.

        Raises:
            DataError: they are missing or damaged, or a store cannot be reached.
            ConfigError: the cache's folder cannot be written.
        """
        self.remote = is_remote(str(folder))
        self.folder: str | Path = str(folder) if self.remote else Path(folder)
        self.manifest: Manifest = read_manifest(self.folder)
        source: ShardSource
        if isinstance(self.folder, Path):
            name = str(self.folder / INDEX_NAME)
            file = _opened(name)
            source = FolderShards(self.folder, self.manifest.shards)
        else:
            cache = cache or FileCache(default_cache_dir(), int(DEFAULT_CACHE_GB * GB))
            name = file_location(self.folder, INDEX_NAME)
            file = os.fdopen(cache.open(name, None, self.manifest.index["sha256"]), "rb")
            source = CachedShards(self.folder, self.manifest.shards, cache)
        with file:
            self.index = SampleIndex(file, name, self.manifest)
        self.files = ShardFiles(source)

    def __len__(self) -> int:
        return len(self.index)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def tasks(self) -> list[str]:
        """Task of each sample."""
        return self.index.tasks()

    @cached_property
    def uids(self) -> list[str]:
        """Uid of each sample; made when it is first asked for, since it takes memory."""
        return self.index.uids()

    def close(self) -> None:
        """Closes the shards."""
        self.files.close()

    def read(self, position: int) -> tuple[Sample, Image.Image]:
        """The sample at a place of the data set, and its stored image, decoded.

        Raises:
            DataError: the shard is missing, cut short, or its bytes are not what was prepared.
        """
        return self.files.read(self.index.address(position))

    def record(self, position: int) -> Sample:
        """The sample at a place of the data set, without its image.

        Raises:
            DataError: as read does.
        """
        return self.files.record(self.index.address(position))


def _opened(path: str) -> BufferedReader:
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples as the model takes them; B samples, S source and T target tokens, right-padded."""

    uids: tuple[str, ...]
    tasks: tuple[str, ...]
    samples: tuple[Sample, ...]
    source_ids_BS: Tensor
    """int64, bos first, eos last."""
    images_BCHW: Tensor
    """float32, scaled to -1..1; or the image trunk's features of them, computed before."""
    image_present_B: Tensor
    """bool."""
    decoder_ids_BT: Tensor
    """int64, bos and the target."""
    target_BT: Tensor
    """int64, the target and eos; pad where there is no label."""
    confidence_B: Tensor
    """float32, weight of a sample in the loss."""
    prompt_index_B: Tensor
    """int64, which of the run's prompts a sample has; 0 where the run has one for all."""
    tokens: int
    """Labelled tokens."""
    cut_sources: int = 0
    """Samples whose instruction was longer than the limit."""
    cut_targets: int = 0
    """Samples whose target was longer than the limit."""
    allowed: Allowed | None = None
    """Tokens that the labels are chosen among in the loss; None for the whole vocabulary."""

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

    def pinned(self) -> Batch:
        """The batch in memory that CUDA copies from while the CPU goes on."""
        pinned = {
            name: value.pin_memory()
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return Batch(**{**vars(self), **pinned})

    def twice(self) -> Batch:
        """The batch and, behind it, the same samples again: two passes of dropout in one."""
        doubled: dict[str, Any] = {
            name: torch.cat([value, value]) if isinstance(value, Tensor) else 2 * value
            for name, value in vars(self).items()
            if name != "allowed"
        }
        return Batch(**doubled, allowed=allowed_twice(self.allowed, len(self.uids)))


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
        answers: tuple[str, ...] = (),
        constrained: Sequence[str] = (),
        prompt_names: Sequence[str] = (),
    ) -> None:
        """Prepares to make batches.

        Args:
            tokenizer: The base's.
            config: The base's.
            image_size: Side in pixels of the square that images are resized to.
            max_source_length: Tokens of an instruction that are kept, bos and eos included.
            max_target_length: Tokens of a target that are kept, eos included.
            answers: The only answers to questions; none leaves them open.
            constrained: Tasks whose loss is over what their answers may hold.
            prompt_names: Tasks with a prompt of their own, in the order of the model's prompts;
                empty where all samples have the same.

        Raises:
            ConfigError: the answers of such a task may hold anything.
        """
        self._prompt_of = {name: index for index, name in enumerate(prompt_names)}
        self._tokenizer = tokenizer
        self._config = config
        self._image_size = image_size
        self._max_source_length = max_source_length
        self._max_target_length = max_target_length
        self._answers = answers
        self._constraints: dict[str, Constraint] = {
            name: constraint_of(get_task(name, answers), tokenizer, config, image_size)
            for name in constrained
        }

    def __call__(
        self,
        records: Sequence[Record],
        rngs: Sequence[random.Random] | None = None,
    ) -> Batch:
        """Makes a batch.

        Args:
            records: Samples with their stored images or features, the same for all of them.
            rngs: For each sample, what chooses among its right targets; None takes the first.

        Raises:
            DataError: a sample has no target, or none that fits.
        """
        vocab = self._config.vocab
        samples = tuple(sample for sample, _ in records)
        sources = [self._source(sample) for sample in samples]
        targets = [
            self._target(sample, rngs[at] if rngs else None) for at, sample in enumerate(samples)
        ]
        labels = [target.ids for target in targets]
        return Batch(
            uids=tuple(sample.uid for sample in samples),
            tasks=tuple(sample.task for sample in samples),
            samples=samples,
            source_ids_BS=_pad([[vocab.bos, *text.ids, vocab.eos] for text in sources], vocab.pad),
            images_BCHW=self._images([image for _, image in records]),
            image_present_B=torch.ones(len(samples), dtype=torch.bool),
            decoder_ids_BT=_pad([[vocab.bos, *ids] for ids in labels], vocab.pad),
            target_BT=_pad([[*ids, vocab.eos] for ids in labels], vocab.pad),
            confidence_B=torch.tensor([self._task(s).confidence(s) for s in samples]),
            prompt_index_B=torch.tensor([self._prompt(sample) for sample in samples]),
            tokens=sum(len(ids) + 1 for ids in labels),
            cut_sources=sum(text.cut for text in sources),
            cut_targets=sum(text.cut for text in targets),
            allowed=allowed_tokens(
                labels, [self._constraints.get(s.task) for s in samples], vocab.eos
            ),
        )

    def _images(self, images: Sequence[Image.Image | Tensor]) -> Tensor:
        features = [each for each in images if isinstance(each, Tensor)]
        if features:  # channels stay adjacent, as the trunk of a frozen base leaves them
            return torch.stack(features).permute(0, 3, 1, 2)
        pictures = [each for each in images if isinstance(each, Image.Image)]
        return torch.stack([to_pixels(picture, self._image_size) for picture in pictures])

    def _task(self, sample: Sample) -> Task:
        return get_task(sample.task, self._answers)

    def _prompt(self, sample: Sample) -> int:
        return self._prompt_of[sample.task] if self._prompt_of else 0

    def _source(self, sample: Sample) -> _Text:
        ids, limit = self._tokenizer.encode(sample.instruction), self._max_source_length - 2
        return _Text(ids[:limit], len(ids) > limit)

    def _target(self, sample: Sample, rng: random.Random | None) -> _Text:
        task, limit = self._task(sample), self._max_target_length - 1
        ids = task.target_ids(sample, self._tokenizer, self._config, self._image_size, rng)
        if len(ids) <= limit:
            return _Text(ids, False)
        kept = task.shortened(ids, limit, self._config)
        if not kept:
            raise DataError(
                f"data.max_target_length = {limit + 1} tokens are too few for the {task.name} of"
                f" sample {sample.uid!r}: its shortest whole part is longer"
            )
        return _Text(kept, True)


class _Text(NamedTuple):
    """Ids without bos and eos, and whether some are missing."""

    ids: list[int]
    cut: bool


def _pad(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
