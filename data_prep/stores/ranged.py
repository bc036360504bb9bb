"""Files of which any range can be read: on disk, or behind a network."""

import io
import os
import stat
from pathlib import Path
from typing import Protocol

from data_prep.files import file_state
from data_prep.stores.base import StoreError


class RangedFile(Protocol):
    """A file that is read by ranges, from several threads at once.

    Attributes:
        name: Where it lies, as error messages say it.
        size: Its length in bytes.
        state: Changes when its content does.
        window: Bytes that a scan reads at once.
    """

    name: str
    size: int
    state: str
    window: int

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly length bytes; StoreError when they cannot be had."""
        ...


class LocalFile:
    """A regular file on this machine; it stays open, so that a replaced one is still whole."""

    window = 8192

    def __init__(self, path: Path) -> None:
        """Opens it.

        Raises:
            StoreError: It is missing, unreadable, or no regular file.
        """
        self.name = str(path)
        try:
            # A pipe without a writer would block here for ever.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read: {_words(error)}") from error
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise StoreError(f"{path} is not a file")
        self._file = io.FileIO(descriptor, "rb")
        self.size = found.st_size
        self.state = file_state(found)

    def read_at(self, offset: int, length: int) -> bytes:
        """See RangedFile."""
        content = bytearray()
        try:
            while len(content) < length:
                part = os.pread(self._file.fileno(), length - len(content), offset + len(content))
                if not part:
                    raise StoreError(f"{self.name} became shorter while it was read")
                content += part
        except OSError as error:
            raise StoreError(f"{self.name} cannot be read: {_words(error)}") from error
        return bytes(content)


def _words(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


class _Raw(io.RawIOBase):
    """A ranged file as Python's lowest kind of file."""

    def __init__(self, file: RangedFile) -> None:
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        if start + offset < 0:
            raise ValueError(f"position {start + offset} is before the file")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        length = max(0, min(len(buffer), self._file.size - self._position))
        if length:
            buffer[:length] = self._file.read_at(self._position, length)
            self._position += length
        return length


def as_stream(file: RangedFile) -> io.BufferedReader:
    """A ranged file as a seekable stream, which is read in windows."""
    return io.BufferedReader(_Raw(file), file.window)
