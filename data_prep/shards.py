"""Shards as bytes: tar files that depend on nothing but their samples, and their index.

Members carry no time, no owner and no machine, so the same samples give the same file. Headers
are written here and not by tarfile.TarFile, because the index needs the exact offset of each
member's data.
"""

import hashlib
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from data_prep.errors import DataError
from data_prep.fields import canonical_json
from data_prep.files import file_sha256
from data_prep.manifest import ShardInfo
from data_prep.schema import IMAGE_EXTENSIONS, ImageFacts, Sample, sample_key

INDEX_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("position", pa.int64()),
        ("uid", pa.string()),
        ("task", pa.string()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int64()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),
    ]
)
_PAD = bytes(tarfile.BLOCKSIZE)


@dataclass(frozen=True, kw_only=True)
class IndexRow:
    """Where one sample lies: offsets and sizes in bytes of its members' data in the tar."""

    shard: int
    position: int
    uid: str
    task: str
    image_offset: int
    image_size: int
    json_offset: int
    json_size: int


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:06d}.tar"


class ShardWriter:
    """Writes samples into one tar and remembers where they lie."""

    def __init__(self, file: BinaryIO, number: int, store_once: bool = False) -> None:
        """Begins a shard.

        Args:
            file: Where it is written.
            number: Number of the shard.
            store_once: Leave out the image member of a sample whose image is there already; its
                index row points at the first one's bytes.
        """
        self._file = file
        self._number = number
        self._hash = hashlib.sha256()
        self._offset = 0
        self._stored: dict[str, int] | None = {} if store_once else None
        self.rows: list[IndexRow] = []

    def add(self, position: int, sample: Sample, image: bytes) -> None:
        """Appends a sample: its image as `<key>.<extension of the format>`, then `<key>.json`.

        Args:
            position: Its place in the dataset, which becomes its key.
            sample: Its record.
            image: The stored image's bytes, whose facts the record carries.
        """
        key = sample_key(position)
        record = canonical_json(sample.to_json())
        image_offset = self._image(key, sample.image, image)
        json_offset = self._member(f"{key}.json", record)
        self.rows.append(
            IndexRow(
                shard=self._number,
                position=position,
                uid=sample.uid,
                task=sample.task,
                image_offset=image_offset,
                image_size=len(image),
                json_offset=json_offset,
                json_size=len(record),
            )
        )

    def finish(self) -> ShardInfo:
        """Ends the archive; the writer takes nothing after this."""
        end = 2 * tarfile.BLOCKSIZE
        self._write(bytes(end + -(self._offset + end) % tarfile.RECORDSIZE))
        return ShardInfo(
            name=shard_name(self._number),
            samples=len(self.rows),
            bytes=self._offset,
            sha256=self._hash.hexdigest(),
            tasks=dict(sorted(Counter(row.task for row in self.rows).items())),
        )

    def _image(self, key: str, facts: ImageFacts, image: bytes) -> int:
        offset = None if self._stored is None else self._stored.get(facts.sha256)
        if offset is None:
            offset = self._member(f"{key}.{IMAGE_EXTENSIONS[facts.format]}", image)
            if self._stored is not None:
                self._stored[facts.sha256] = offset
        return offset

    def _member(self, name: str, content: bytes) -> int:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        info.mode = 0o644
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self._offset
        self._write(content)
        self._write(_PAD[: -len(content) % tarfile.BLOCKSIZE])
        return offset

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._hash.update(content)
        self._offset += len(content)


def verify_shard(folder: Path, shard: ShardInfo) -> None:
    """Checks a shard against its entry in the manifest.

    Raises:
        DataError: It is missing, of another size, or its bytes changed.
    """
    path = folder / shard.name
    if not path.is_file():
        raise DataError(f"{path} is missing")
    size = path.stat().st_size
    if size != shard.bytes:
        raise DataError(f"{path} is corrupt: {size} bytes, the manifest says {shard.bytes}")
    if file_sha256(path) != shard.sha256:
        raise DataError(f"{path} is corrupt: its SHA-256 is not the manifest's")
