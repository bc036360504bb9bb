"""Features while training: an image's record, read at its place and checked."""

from __future__ import annotations

import os
import threading
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import DataError
from pipeline.features.record import (
    DTYPES,
    MANIFEST_FILE,
    FeatureManifest,
    file_sha256,
    list_path,
    read_list,
    records_path,
)

_KEEP_OPEN = 256


class FeatureFiles:
    """The features of one data set's images.

    Safe to use from several threads. Pickled, it arrives with all files closed.
    """

    def __init__(self, folder: Path) -> None:
        """Reads the manifest; DataError when it is missing or damaged."""
        self.folder = folder
        self.manifest = FeatureManifest.load(folder)
        self._start()

    def _start(self) -> None:
        self._open: OrderedDict[int, _OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder, self.manifest = state["folder"], state["manifest"]
        self._start()

    def read(self, shard: int, image: str) -> Tensor:
        """The features `[rows, columns, channels]` of a shard's image, by its SHA-256.

        Raises:
            DataError: there are none, or they are not what was computed.
        """
        return self._file(shard).read(image)

    def _file(self, shard: int) -> _OpenFile:
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
        opened = _OpenFile(self.folder, shard, self.manifest)
        with self._lock:
            self._open[shard] = opened
            while len(self._open) > _KEEP_OPEN:
                self._open.popitem(last=False)
        return opened


class _OpenFile:
    """The open records of one shard; closed when the last reader lets go of it."""

    def __init__(self, folder: Path, shard: int, manifest: FeatureManifest) -> None:
        self._descriptor = -1
        listed = list_path(folder, shard)
        if not 0 <= shard < len(manifest.files):
            raise DataError(f"{folder / MANIFEST_FILE} knows of no shard {shard}")
        if file_sha256(listed) != manifest.files[shard]:
            raise DataError(f"{listed} is not what {MANIFEST_FILE} says: compute the features anew")
        _, file = read_list(listed)
        self._kind = manifest.kind
        self._path = records_path(folder, shard)
        self._places = {image: place for place, image in enumerate(file.images)}
        self._crc32 = file.crc32
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"{self._path} cannot be opened: {error.strerror}") from error

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read(self, image: str) -> Tensor:
        place = self._places.get(image)
        if place is None:
            raise DataError(f"{self._path} has no features of the image {image}")
        size = self._kind.record_bytes
        try:
            record = os.pread(self._descriptor, size, place * size)
        except OSError as error:
            raise DataError(f"{self._path} cannot be read: {error.strerror}") from error
        if len(record) != size or zlib.crc32(record) != self._crc32[place]:
            raise DataError(
                f"{self._path} is corrupt at record {place}: run `prefixworks features` again"
            )
        values = torch.frombuffer(bytearray(record), dtype=DTYPES[self._kind.precision])
        return values.view(self._kind.shape)
