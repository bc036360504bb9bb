"""The index of a prepared data set: where each sample lies, as columns.

Only the columns that reading needs are kept, as flat arrays and not as Python objects: about 70
bytes a sample. Loader workers do not need it at all, since they are told where to read.
"""

from __future__ import annotations

import hashlib
from io import BufferedReader
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.manifest import Manifest
from pipeline.errors import DataError

_NUMBERS = ("shard", "image_offset", "image_size", "json_offset", "json_size")


class SampleAddress(NamedTuple):
    """Where a sample lies: number of its shard, and its members' bytes in there."""

    uid: str
    shard: int
    image_offset: int
    image_size: int
    json_offset: int
    json_size: int


class SampleIndex:
    """The rows of an index file."""

    def __init__(self, file: BufferedReader, name: str, manifest: Manifest) -> None:
        """Reads the file.

        Args:
            file: The file.
            name: The file as error messages call it.
            manifest: Of the same data set.

        Raises:
            DataError: it is not what the manifest says.
        """
        table = _read(file, name, manifest)
        tasks = table["task"].combine_chunks()
        self.task_names: list[str] = tasks.dictionary.to_pylist()
        """Distinct tasks, in order of appearance."""
        self.task_codes: NDArray[np.int32] = tasks.indices.to_numpy(zero_copy_only=False)
        """Number in task_names of each sample's task."""
        columns = [np.ascontiguousarray(table[column].to_numpy()) for column in _NUMBERS]
        self.shards: NDArray[np.int32] = columns[0]
        """Number of the shard of each sample."""
        self._numbers = columns
        self._uids: pa.ChunkedArray = table["uid"]
        if len(self) != manifest.samples:
            raise DataError(f"{name} has {len(self)} rows, its manifest {manifest.samples} samples")
        if len(self) and not 0 <= self.shards.min() <= self.shards.max() < len(manifest.shards):
            raise DataError(f"{name} names a shard that its manifest does not have")

    def __len__(self) -> int:
        return len(self.shards)

    def tasks(self) -> list[str]:
        """Task of each sample; equal tasks are one object."""
        return [self.task_names[code] for code in self.task_codes.tolist()]

    def uids(self) -> list[str]:
        """Uid of each sample."""
        uids: list[str] = self._uids.to_pylist()
        return uids

    def address(self, row: int) -> SampleAddress:
        """Where the sample of a row lies."""
        return SampleAddress(self._uids[row].as_py(), *(int(n[row]) for n in self._numbers))

    def blocks(self, tasks: set[str]) -> list[NDArray[np.int64]]:
        """Rows of some tasks, those of each shard together, shards without any left out."""
        wanted = [code for code, name in enumerate(self.task_names) if name in tasks]
        rows = np.flatnonzero(np.isin(self.task_codes, wanted))
        shards = self.shards[rows]
        if np.any(shards[1:] < shards[:-1]):
            by_shard = np.argsort(shards, kind="stable")
            rows, shards = rows[by_shard], shards[by_shard]
        starts = np.flatnonzero(np.diff(shards)) + 1
        return np.split(rows, starts) if len(rows) else []


def _read(file: BufferedReader, name: str, manifest: Manifest) -> pa.Table:
    try:
        if hashlib.file_digest(file, "sha256").hexdigest() != manifest.index["sha256"]:
            raise DataError(f"{name} is corrupt: its SHA-256 is not the manifest's")
        file.seek(0)
        return pq.read_table(file, columns=["uid", "task", *_NUMBERS], read_dictionary=["task"])
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{name} cannot be read: {reason}") from error
