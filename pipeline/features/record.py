"""The format of a feature cache.

    features.json            what the features are of, and the files
    features-000000.bin      of the images of shard 0, one record after the other
    features-000000.json     which image each record is of, and its CRC-32

A record is the feature map of one image, row by row, the channels of a place adjacent, in
little-endian float32 or bfloat16. The file of a shard's records comes first, its list when it is
whole, and `features.json` last, so what can be read is complete. Nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from torch import nn

from model.tensor_files import Whole, fingerprint_of
from pipeline.errors import DataError

FORMAT = "prefixworks.features/1"
MANIFEST_FILE = "features.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Of the records, by `engine.precision`."""


@dataclass(frozen=True, kw_only=True)
class FeatureKind:
    """All that decides what features an image has."""

    trunk: str
    """Fingerprint of the image trunk."""
    image_size: int
    """Side in pixels of the square that images are resized to."""
    precision: str
    batch_size: int
    """Images that were computed at once."""
    shape: tuple[int, int, int]
    """Rows, columns and channels of a feature map."""
    versions: dict[str, str]
    """Of the libraries that resize and compute."""

    @property
    def record_bytes(self) -> int:
        """Bytes of one image's features."""
        rows, columns, channels = self.shape
        return rows * columns * channels * DTYPES[self.precision].itemsize


@dataclass(frozen=True, kw_only=True)
class FeatureFile:
    """The records of one shard's images."""

    shard: str
    """SHA-256 of the shard."""
    sha256: str
    """Of the records."""
    images: tuple[str, ...]
    """SHA-256 of the stored image of each record."""
    crc32: tuple[int, ...]
    """Of each record."""


@dataclass(frozen=True, kw_only=True)
class FeatureManifest:
    """A whole cache."""

    dataset: str
    """Digest of the data set's manifest."""
    kind: FeatureKind
    files: tuple[str, ...]
    """SHA-256 of the list of each shard, in the order of shards."""
    images: int

    def save(self, folder: Path) -> None:
        """Writes features.json, whole or not at all; DataError when it cannot be written."""
        write_json(folder / MANIFEST_FILE, {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads features.json; DataError when it is missing or damaged."""
        path = folder / MANIFEST_FILE
        if not path.is_file():
            raise DataError(
                f"{folder} holds no finished features: {MANIFEST_FILE} is missing; `prefixworks"
                " features` makes it"
            )
        record = _read_json(path)
        try:
            kind = record["kind"]
            return cls(
                dataset=str(record["dataset"]),
                kind=FeatureKind(**{**kind, "shape": _shape(kind["shape"])}),
                files=tuple(map(str, record["files"])),
                images=int(record["images"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is damaged: {error}") from error


def withdraw(folder: Path, dataset: str, kind: FeatureKind, shards: int) -> None:
    """Removes what another data set or trunk left in a folder, and what killed runs left.

    A manifest of the same stays, since files that are made again are the same, too.

    Raises:
        DataError: it cannot be removed.
    """
    manifest = folder / MANIFEST_FILE
    try:
        current = FeatureManifest.load(folder) if manifest.is_file() else None
    except DataError:
        current = None  # damaged, and about to be written anew
    try:
        if current is None or (current.dataset, current.kind) != (dataset, kind):
            manifest.unlink(missing_ok=True)
        wanted = {path(folder, n) for n in range(shards) for path in (list_path, records_path)}
        for path in [*folder.glob("features-*"), *folder.glob(".features*.tmp")]:
            if path not in wanted:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror}") from error


def records_path(folder: Path, shard: int) -> Path:
    """Where the records of a shard's images lie."""
    return folder / f"features-{shard:06d}.bin"


def list_path(folder: Path, shard: int) -> Path:
    """Where the list of a shard's records lies."""
    return folder / f"features-{shard:06d}.json"


def read_list(path: Path) -> tuple[FeatureKind, FeatureFile]:
    """Reads the list of a shard's records, and what kind they are.

    Raises:
        DataError: it is missing or damaged.
    """
    record = _read_json(path)
    try:
        kind, file = record["kind"], record["file"]
        found = FeatureFile(
            shard=str(file["shard"]),
            sha256=str(file["sha256"]),
            images=tuple(map(str, file["images"])),
            crc32=tuple(map(int, file["crc32"])),
        )
        if len(found.images) != len(found.crc32):
            raise ValueError(f"{len(found.images)} images and {len(found.crc32)} checksums")
        return FeatureKind(**{**kind, "shape": _shape(kind["shape"])}), found
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}") from error


def write_list(path: Path, kind: FeatureKind, file: FeatureFile) -> None:
    """Writes the list of a shard's records; DataError when it cannot be written."""
    write_json(path, {"format": FORMAT, "kind": asdict(kind), "file": asdict(file)})


def trunk_fingerprint(trunk: nn.Module, whole: Whole | None = None) -> str:
    """Returns `sha256:<hex>` of an image trunk's weights and statistics.

    Args:
        trunk: The trunk.
        whole: Collects a tensor of which this process holds a part; None where it holds all.
    """
    tensors = trunk.state_dict(keep_vars=True)
    return fingerprint_of(tensors) if whole is None else fingerprint_of(tensors, whole=whole)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes JSON that appears whole or not at all; DataError when it cannot be written."""
    with whole_file(path) as file:
        file.write(json.dumps(record).encode() + b"\n")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that gets its name when the block ends without an error.

    Raises:
        DataError: it cannot be written.
    """
    # A name of its own: after a lost node, two workers may write the same shard.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file; DataError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DataError(f"{path} is not of format {FORMAT}")
    return record


def _shape(values: Any) -> tuple[int, int, int]:
    rows, columns, channels = map(int, values)
    return rows, columns, channels
