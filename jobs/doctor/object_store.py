"""An object store: whether data sets can be listed and read there, and how fast.

Nothing is written to it: training only reads, and its credentials should allow no more.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pyarrow.fs

from data_prep.errors import DataError
from data_prep.stores.filesystems import open_filesystem
from data_prep.stores.locations import Location, parse_location
from data_prep.stores.retries import Retries
from jobs.doctor.check import MIB, Check, within
from pipeline.errors import ConfigError

_MOST_BYTES = 64 * MIB
_MOST_READ_S = 5.0
_PIECE = 4 * MIB
_DEEPEST = 4
_SLOW_BYTES_S = 10e6
_RETRIES = Retries(attempts=2, first_delay_s=0.2)


def store_location(uri: str) -> Location:
    """The location of an object store as a check takes it.

    Raises:
        ConfigError: it is none.
    """
    try:
        location = parse_location(uri)
    except DataError as error:
        raise ConfigError(f"--store: {error}") from error
    if not location.remote:
        raise ConfigError(
            f"--store={uri}: a folder; give an object store, such as s3://bucket/path"
        )
    return location


def check_store(uri: str, limit_s: float = 30.0) -> Check:
    """Lists what lies under a location and reads up to 64 MiB of it, for 5 s at most.

    Args:
        uri: Such as `s3://bucket/path?endpoint=https://...`.
        limit_s: Longest wait for all of it, in seconds.

    Raises:
        ConfigError: it is no object store's location.
    """
    location = store_location(uri)
    shown = f"{location.scheme}://{location.path}"
    try:
        size, seconds, listing_s = within(limit_s, lambda: _read_some(location, shown))
    except (DataError, OSError) as error:
        advice = "check endpoint, region, credentials: `docs/how-to/prepare-sources.md`"
        reason = " ".join(str(error).split())
        found = reason if reason.startswith(shown) else f"{shown}: {reason}"
        return Check("object store", "failed", found, advice)
    if not size:
        advice = "name a prefix that holds data, such as a prepared data set"
        return Check("object store", "warning", f"{shown}: listed, but nothing to read", advice)
    rate = size / seconds
    found = (
        f"{shown}: listed in {listing_s * 1000:.0f} ms, reads {rate / 1e6:.0f} MB/s in one stream"
        f" ({size / MIB:.1f} MiB)"
    )
    if size >= MIB and rate < _SLOW_BYTES_S:
        advice = "use a store near the nodes, or copy the shards to a disk of theirs"
        return Check("object store", "warning", found, advice)
    return Check("object store", "ok", found)


def _read_some(location: Location, shown: str) -> tuple[int, float, float]:
    """Bytes that were read, the seconds of the reading, and those of the listing."""
    start = time.monotonic()
    filesystem = open_filesystem(location, _RETRIES)
    files = _RETRIES.run(shown, lambda: _files(filesystem, location.path))
    listed = time.monotonic()
    reading = _Reading(filesystem, since=listed)
    for path in files:
        if reading.done():
            break
        _RETRIES.run(shown, partial(reading.read, path))
    return reading.size, time.monotonic() - listed, listed - start


def _files(filesystem: Any, path: str) -> list[str]:
    """Objects under a path: those of the first level that has any, the largest first."""
    info = filesystem.get_file_info(path)
    if info.type == pyarrow.fs.FileType.File:
        return [path]
    if info.type == pyarrow.fs.FileType.NotFound:
        raise FileNotFoundError("there is nothing; check the bucket and the path")
    for _ in range(_DEEPEST):
        # Not recursive: a bucket may hold more objects than anybody wants to list.
        found = filesystem.get_file_info(pyarrow.fs.FileSelector(path))
        files = [each for each in found if each.type == pyarrow.fs.FileType.File and each.size]
        if files:
            return [each.path for each in sorted(files, key=lambda each: -each.size)]
        folders = [each.path for each in found if each.type == pyarrow.fs.FileType.Directory]
        if not folders:
            return []
        path = folders[0]
    return []


class _Reading:
    """What has been read so far, within bounds of bytes and time."""

    def __init__(self, filesystem: Any, since: float) -> None:
        self.size = 0
        self._filesystem = filesystem
        self._until = since + _MOST_READ_S

    def done(self) -> bool:
        """Whether a bound is reached."""
        return self.size >= _MOST_BYTES or time.monotonic() > self._until

    def read(self, path: str) -> None:
        """Reads an object, as far as the bounds go."""
        with self._filesystem.open_input_stream(path) as stream:
            while not self.done():
                piece = len(stream.read(_PIECE))
                if not piece:
                    return
                self.size += piece
