"""Files that appear whole or not at all: temporary name, fsync, rename."""

import hashlib
import io
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.errors import DataError

TEMPORARY_SUFFIX = ".tmp"


def not_writable(path: Path, error: OSError) -> DataError:
    """The one line for a path that the system refuses to write."""
    return DataError(f"{path} cannot be written: {error.strerror or error}")


def temporary_path(path: Path) -> Path:
    """A name beside a file for what is to become it; remove_temporaries knows such names."""
    # Random and not the process's number, which two machines on a shared folder may both have.
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")


def make_folder(path: Path) -> None:
    """Makes a folder and those above it; DataError when it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(path, error) from error


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that gets its name only when the block ends without an error.

    Raises:
        DataError: The file cannot be written: disk full, folder gone or read-only.
    """
    temporary = temporary_path(path)
    try:
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        except OSError as error:
            raise not_writable(path, error) from error
    except BaseException:
        # A folder that is gone or read-only has nothing to remove; the first error is the one to
        # be heard.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file at once, whole or not at all; DataError when it cannot be written."""
    with whole_file(path) as file:
        file.write(content)


def move_whole(staged: Path, path: Path) -> None:
    """Gives a finished file of the same file system its final name.

    Raises:
        DataError: It cannot be written there, or the finished file is gone.
    """
    try:
        staged.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise not_writable(path, error) from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as hex; DataError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def file_state(found: os.stat_result) -> str:
    """What stands for a file's content without reading it: its time of change and its size."""
    return f"{found.st_mtime_ns}:{found.st_size}"


def remove_temporaries(folder: Path) -> None:
    """Removes what killed runs left behind; only safe while no other run writes there."""
    try:
        for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise not_writable(folder, error) from error


class HashedSink(io.RawIOBase):
    """Takes bytes, knows their SHA-256, and hands them on to a file if there is one."""

    def __init__(self, file: BinaryIO | None = None) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._size = 0

    def writable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Bytes that were taken."""
        return self._size

    def write(self, content: Any, /) -> int:
        """Takes bytes."""
        self._hash.update(content)
        if self._file is not None:
            self._file.write(content)
        size = memoryview(content).nbytes
        self._size += size
        return size

    def discard(self) -> None:
        """Lets go of the file, which failed; what still comes is only counted."""
        self._file = None

    @property
    def sha256(self) -> str:
        """SHA-256 as hex of what was taken so far."""
        return self._hash.hexdigest()


def _sync_folder(folder: Path) -> None:
    # A rename survives a power cut only once the folder is on disk, too.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
