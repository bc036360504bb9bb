"""Shards as files: samples read at their addresses, from any number of threads and processes."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from data_prep.manifest import ShardInfo
from data_prep.schema import IMAGE_EXTENSIONS, Sample
from pipeline.errors import DataError
from pipeline.training.index import SampleAddress

Record = tuple[Sample, Image.Image | Tensor]
"""A sample and its stored image, or that image's features `[rows, columns, channels]`."""


class ShardSource(Protocol):
    """Where the shards of a data set come from; it is sent to loader workers.

    Attributes:
        keep_open: Shards that may stay open.
    """

    keep_open: int

    def name(self, shard: int) -> str:
        """The shard as error messages call it."""
        ...

    def open(self, shard: int) -> int:
        """Opens a shard; returns its descriptor, which the caller closes.

        Raises:
            DataError: it is missing, or not what the manifest says.
        """
        ...


class FolderShards:
    """Shards in a folder of this machine."""

    keep_open = 256
    """Most systems let a process open 1024 files, and a data set may have more shards."""

    def __init__(self, folder: Path, shards: Sequence[ShardInfo]) -> None:
        self._folder = folder
        self._shards = [(shard.name, shard.bytes) for shard in shards]

    def name(self, shard: int) -> str:
        """See ShardSource."""
        return str(self._folder / self._shards[shard][0])

    def open(self, shard: int) -> int:
        """See ShardSource."""
        path = self.name(shard)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"{path} cannot be opened: {error.strerror}") from error
        size, expected = os.fstat(descriptor).st_size, self._shards[shard][1]
        if size != expected:
            os.close(descriptor)
            raise DataError(f"{path} has {size} bytes, its manifest says {expected}")
        return descriptor


class _OpenShard:
    """A descriptor that is closed when its last reader lets go of it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class ShardFiles:
    """Reads samples out of shards, of which the last used stay open.

    Safe to use from several threads. Pickled, it arrives with all shards closed.
    """

    def __init__(self, source: ShardSource) -> None:
        self._source = source
        self._start()

    def _start(self) -> None:
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"_source": self._source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._source = state["_source"]
        self._start()

    def close(self) -> None:
        """Closes the shards."""
        with self._lock:
            self._open.clear()

    def name(self, shard: int) -> str:
        """A shard as error messages call it."""
        return self._source.name(shard)

    def read(self, address: SampleAddress) -> tuple[Sample, Image.Image]:
        """A sample and its stored image, decoded.

        Raises:
            DataError: the shard is missing, cut short, or its bytes are not what was prepared.
        """
        name = self._source.name(address.shard)
        sample = self.record(address)
        content = self._pread(address.shard, address.image_offset, address.image_size)
        if hashlib.sha256(content).hexdigest() != sample.image.sha256:
            raise DataError(f"{name} is corrupt: the image of {sample.uid!r} has another SHA-256")
        try:
            image = Image.open(io.BytesIO(content), formats=tuple(IMAGE_EXTENSIONS))
            image.load()
        except (OSError, ValueError) as error:
            raise DataError(f"{name}: the image of {sample.uid!r} cannot be read") from error
        return sample, image

    def record(self, address: SampleAddress) -> Sample:
        """A sample without its image.

        Raises:
            DataError: as read does.
        """
        name = self._source.name(address.shard)
        record = self._pread(address.shard, address.json_offset, address.json_size)
        try:
            sample = Sample.from_json(record)
        except DataError as error:
            raise DataError(f"{name} is corrupt at {address.uid!r}: {error}") from error
        if sample.uid != address.uid:
            raise DataError(
                f"{name} is corrupt: {sample.uid!r} where the index says {address.uid!r}"
            )
        return sample

    def _pread(self, shard: int, offset: int, size: int) -> bytes:
        file = self._file(shard)
        try:
            content = os.pread(file.descriptor, size, offset)
        except OSError as error:
            raise DataError(
                f"{self._source.name(shard)} cannot be read: {error.strerror}"
            ) from error
        if len(content) != size:
            raise DataError(
                f"{self._source.name(shard)} is cut short: nothing at byte {offset + len(content)}"
            )
        return content

    def _file(self, shard: int) -> _OpenShard:
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
        # Not under the lock: opening may wait for a network, and other shards need not.
        opened = _OpenShard(self._source.open(shard))
        with self._lock:
            self._open[shard] = opened
            while len(self._open) > self._source.keep_open:
                self._open.popitem(last=False)
        return opened
