"""A prepared dataset to read: any of its records and images, without training's tensors.

Records are read at the offsets of the index, in the order of the file, so looking at all texts of a
dataset reads no image, and looking at some of its samples reads only those.
"""

import hashlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.errors import DataError
from data_prep.manifest import INDEX_NAME, Manifest, read_manifest
from data_prep.schema import Sample
from data_prep.shards import INDEX_SCHEMA, IndexRow

_ROWS_AT_ONCE = 4096


class PreparedDataset:
    """The manifest and the index of a dataset, and what they lead to.

    Attributes:
        folder: Folder of the dataset.
        manifest: Its manifest.
        index: Its index, one row a sample (data_prep.shards.INDEX_SCHEMA).
    """

    def __init__(self, folder: str | Path) -> None:
        """Reads manifest and index; DataError when they are missing or damaged."""
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(folder)
        self.index: pa.Table = self._read_index()

    def __len__(self) -> int:
        return int(self.index.num_rows)

    def samples(self, places: Sequence[int] | None = None) -> Iterator[tuple[IndexRow, Sample]]:
        """Reads records.

        Args:
            places: Rows of the index, increasing, so that shards are read one after another; None
                reads all.

        Raises:
            DataError: A shard is missing, cut short, or a record is not what was prepared.
        """
        shard, file = -1, None
        try:
            for row in self._rows(places):
                if row.shard != shard or file is None:
                    if file is not None:
                        file.close()
                    shard, file = row.shard, self._open(row.shard)
                yield row, self._sample(file, row)
        finally:
            if file is not None:
                file.close()

    def image(self, row: IndexRow, sample: Sample) -> bytes:
        """The stored image of a sample; DataError when its bytes are not those prepared."""
        with self._open(row.shard) as file:
            content = _read(file, row.image_offset, row.image_size)
        if hashlib.sha256(content).hexdigest() != sample.image.sha256:
            raise DataError(f"{self._path(row.shard)} is corrupt: the image of {row.uid!r} changed")
        return content

    def _rows(self, places: Sequence[int] | None) -> Iterator[IndexRow]:
        table = self.index if places is None else self.index.take(pa.array(places, pa.int64()))
        for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
            yield from (IndexRow(**row) for row in batch.to_pylist())

    def _sample(self, file: BinaryIO, row: IndexRow) -> Sample:
        try:
            sample = Sample.from_json(_read(file, row.json_offset, row.json_size))
        except DataError as error:
            path = self._path(row.shard)
            raise DataError(f"{path} is corrupt at {row.uid!r}: {error}") from error
        if sample.uid != row.uid:
            raise DataError(f"{self._path(row.shard)} is corrupt: {sample.uid!r}, not {row.uid!r}")
        return sample

    def _path(self, shard: int) -> Path:
        if not 0 <= shard < len(self.manifest.shards):
            raise DataError(f"{self.folder / INDEX_NAME} names shard {shard}, which there is not")
        return self.folder / self.manifest.shards[shard].name

    def _open(self, shard: int) -> BinaryIO:
        path = self._path(shard)
        try:
            return path.open("rb")
        except OSError as error:
            raise DataError(f"{path} cannot be opened: {error.strerror}") from error

    def _read_index(self) -> pa.Table:
        path = self.folder / INDEX_NAME
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != self.manifest.index["sha256"]:
            raise DataError(f"{path} is corrupt: its SHA-256 is not the manifest's")
        try:
            return pq.read_table(BytesIO(content), schema=INDEX_SCHEMA)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)
