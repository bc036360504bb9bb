"""Shards of data sets in object stores, kept on this machine within a bound.

A shard is named by its SHA-256, so ranks, runs and data sets share what is equal, and a data set
that is replaced is never mixed up with what it was. Files appear whole or not at all; what was
used longest ago goes first. Several processes may use one folder: locks of the kernel keep them
apart, and those of a process that is killed go with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data_prep.manifest import ShardInfo
from data_prep.stores import file_location, open_input
from pipeline.errors import ConfigError, DataError

GB = 10**9
_SUFFIX = ".bin"
_PARTIAL = ".partial"
_CHUNK_BYTES = 4 * 2**20
_STRIPES = 256
_ATTEMPTS = 3


def default_cache_dir() -> Path:
    """$PREFIXWORKS_CACHE, else prefixworks in the user's cache folder; and shards in there."""
    own = os.environ.get("PREFIXWORKS_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return (Path(own) if own else Path(home) / "prefixworks") / "shards"


class _File(NamedTuple):
    location: str
    bytes: int | None
    """None where it is not known before it is asked for."""
    sha256: str


class FileCache:
    """A folder of files that were fetched, the last used of them."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Makes the folder.

        Raises:
            ConfigError: it cannot be written.
        """
        self._folder = folder
        self._limit = limit_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._locked("size"):
                pass
        except OSError as error:
            raise ConfigError(
                f"data.cache_dir = {str(folder)!r}: cannot be written: {error.strerror}"
            ) from error

    def open(self, location: str, size: int | None, sha256: str) -> int:
        """Opens a file, which is fetched first if it is not there.

        Args:
            location: Where it comes from.
            size: Its bytes, if they are known.
            sha256: Of its content; also its name in the cache.

        Returns:
            A descriptor, which the caller closes.

        Raises:
            DataError: it is not what it should be, or the store or the cache cannot be used.
        """
        wanted = _File(location, size, sha256)
        for _ in range(_ATTEMPTS):
            descriptor = self._found(wanted)
            if descriptor is not None:
                return descriptor
            with self._locked(f"{int(sha256[:8], 16) % _STRIPES:03d}"):
                # Another process may have fetched it while this one waited.
                if not self._path(wanted).exists():
                    self._fetch(wanted)
        raise DataError(
            f"{self._folder} is too small: {location} is removed as soon as it is there; give more"
            " data.cache_gb"
        )

    def _path(self, file: _File) -> Path:
        return self._folder / f"{file.sha256}{_SUFFIX}"

    def _found(self, file: _File) -> int | None:
        path = self._path(file)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{path} cannot be opened: {error.strerror}") from error
        if file.bytes is not None and os.fstat(descriptor).st_size != file.bytes:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        # The time of change says when it was last used: many systems do not keep that of reading.
        with contextlib.suppress(OSError):
            os.utime(path)
        return descriptor

    def _fetch(self, file: _File) -> None:
        with open_input(file.location) as source:
            size = source.seek(0, os.SEEK_END)
            source.seek(0)
            if file.bytes is not None and size != file.bytes:
                raise DataError(f"{file.location} has {size} bytes, its manifest says {file.bytes}")
            try:
                with self._reserved(size) as (path, descriptor):
                    digest = hashlib.sha256()
                    with os.fdopen(descriptor, "wb", closefd=False) as target:
                        while part := source.read(_CHUNK_BYTES):
                            digest.update(part)
                            target.write(part)
                    if digest.hexdigest() != file.sha256:
                        raise DataError(
                            f"{file.location} is corrupt: its SHA-256 is not the manifest's"
                        )
                    os.fsync(descriptor)
                    path.replace(self._path(file))
            except OSError as error:
                raise DataError(
                    f"{self._folder} cannot be written: {error.strerror or error}"
                ) from error

    @contextlib.contextmanager
    def _reserved(self, size: int) -> Iterator[tuple[Path, int]]:
        """A file under a temporary name, for which there is room."""
        path = self._folder / f"{uuid.uuid4().hex}{_PARTIAL}"
        with self._locked("size"):
            self._make_room(size)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            # Held until it is whole, so that others can tell it from what a killed one left.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.truncate(descriptor, size)
        try:
            yield path, descriptor
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def _make_room(self, size: int) -> None:
        """Removes what a killed process left, then what was used longest ago."""
        kept = []
        for entry in os.scandir(self._folder):
            if entry.name.endswith(_PARTIAL) and _abandoned(entry.path):
                Path(entry.path).unlink(missing_ok=True)
            elif entry.name.endswith((_SUFFIX, _PARTIAL)):
                with contextlib.suppress(FileNotFoundError):
                    found = entry.stat()
                    kept.append((found.st_mtime_ns, found.st_size, entry.path))
        total = size + sum(bytes_ for _, bytes_, _ in kept)
        for _, bytes_, path in sorted(kept):
            if total <= self._limit:
                return
            if path.endswith(_SUFFIX):
                Path(path).unlink(missing_ok=True)
                total -= bytes_

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        path = self._folder / f"{name}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _abandoned(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


class CachedShards:
    """Shards of a data set in an object store, read through the cache."""

    keep_open = 0
    """A removed file takes room until it is closed, so none is held open."""

    def __init__(self, location: str, shards: Sequence[ShardInfo], cache: FileCache) -> None:
        self._location = location
        self._shards = [(shard.name, shard.bytes, shard.sha256) for shard in shards]
        self._cache = cache

    def name(self, shard: int) -> str:
        """See ShardSource."""
        return file_location(self._location, self._shards[shard][0])

    def open(self, shard: int) -> int:
        """See ShardSource."""
        _, size, sha256 = self._shards[shard]
        return self._cache.open(self.name(shard), size, sha256)
