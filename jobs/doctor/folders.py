"""The folder of the runs: space, speed, and whether files can appear in it whole.

The folder may not exist yet; then the nearest one above it is looked at. Whatever is written is
removed again.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from pathlib import Path

from jobs.doctor.check import GIB, MIB, Check

_PIECE = bytes(4 * MIB)
_MOST_BYTES = 128 * MIB
_MOST_S = 3.0
"""A slow disk is given up on after so long; the rate of what was written then counts."""
_SLOW_BYTES_S = 50e6


def check_disk(folder: Path) -> Check:
    """Space where runs are written."""
    try:
        free = shutil.disk_usage(existing(folder)).free
    except OSError as error:
        return _unusable("disk", folder, error)
    found = f"{free / GIB:.1f} GiB free for {folder}"
    if free < GIB:
        return Check("disk", "failed", found, "free 1 GiB or choose another --output-dir")
    if free < 10 * GIB:
        return Check("disk", "warning", found, "checkpoints of large bases need more than 10 GiB")
    return Check("disk", "ok", found)


def check_checkpoints(folder: Path) -> Check:
    """Whether a file can be replaced there as checkpoints are: whole or not at all.

    Written under another name, synced, renamed over the old file, and the folder synced too.
    """
    start = time.monotonic()
    try:
        place = existing(folder)
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=place) as scratch:
            final, new = Path(scratch) / "final", Path(scratch) / "new"
            final.write_bytes(b"old")
            content = os.urandom(MIB)
            with new.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            new.replace(final)
            _sync_folder(Path(scratch))
            if final.read_bytes() != content or new.exists():
                advice = "this file system loses renames: choose another --output-dir"
                return Check("checkpoints", "failed", f"{place}: a rename went wrong", advice)
    except OSError as error:
        return _unusable("checkpoints", folder, error)
    spent = time.monotonic() - start
    found = f"1 MiB written, synced and renamed over another in {spent * 1000:.0f} ms in {place}"
    if spent > 2:
        return Check("checkpoints", "warning", found, "a local disk makes checkpoints faster")
    return Check("checkpoints", "ok", found)


def check_disk_speed(folder: Path) -> Check:
    """Throughput of one stream, written and synced, then read back past the page cache."""
    try:
        place = existing(folder)
        # Without a name: nothing can stay behind, even when this process is killed.
        with tempfile.TemporaryFile(dir=place) as stream:
            descriptor = stream.fileno()
            size, write_s = _write(descriptor)
            read_s = _read(descriptor)
    except OSError as error:
        return _unusable("disk speed", folder, error)
    found = (
        f"writes {size / write_s / 1e6:.0f} MB/s, reads {size / read_s / 1e6:.0f} MB/s"
        f" ({size / MIB:.0f} MiB in {place})"
    )
    if size / max(write_s, read_s) < _SLOW_BYTES_S:
        advice = "put runs and the shard cache (data.cache_dir) on a local disk"
        return Check("disk speed", "warning", found, advice)
    return Check("disk speed", "ok", found)


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists.

    Raises:
        OSError: there is something else in its place, or it cannot be looked at.
    """
    place = folder.absolute()
    # A link that leads nowhere is in the way, too.
    while not place.exists() and not place.is_symlink():
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{place} is no folder")
    return place


def _unusable(name: str, folder: Path, error: OSError) -> Check:
    advice = "give this user the folder and space in it, or choose another --output-dir"
    return Check(name, "failed", f"{folder}: {error.strerror}", advice)


def _write(descriptor: int) -> tuple[int, float]:
    """Bytes that were written and synced, and the seconds that it took."""
    start = time.monotonic()
    size = 0
    while size < _MOST_BYTES and time.monotonic() - start < _MOST_S:
        size += os.write(descriptor, _PIECE)
        # Piece by piece: else a slow disk is only noticed when all of it has to be there.
        os.fdatasync(descriptor)
    return size, time.monotonic() - start


def _read(descriptor: int) -> float:
    """Seconds to read the file, which the system is asked to have forgotten."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(descriptor, 0, os.SEEK_SET)
    start = time.monotonic()
    while os.read(descriptor, len(_PIECE)):
        pass
    return time.monotonic() - start


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
