"""Images that can only be read in order, copied once into a file where a range is an image."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from data_prep.errors import DataError
from data_prep.files import not_writable, whole_file
from data_prep.readers.base import Workspace
from data_prep.readers.scratch import Scratch
from data_prep.stores import range_address


class Blob:
    """Distinct images one after another; the file gets its name when the block ends well.

    A file that is there already was made from the same input, as its name says, and is kept with
    its time: no shard has to be made again because of it.
    """

    def __init__(self, work: Workspace, scratch: Scratch) -> None:
        self._work, self._path = work, work.blob
        self._connection = scratch.connection
        self._offset = 0
        self._connection.execute(
            "CREATE TABLE blob (sha256 BLOB PRIMARY KEY, at INTEGER) WITHOUT ROWID"
        )
        self._opened = ExitStack()
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        if self._path and not self._path.exists():
            opened = _growing if self._work.blob_grows else whole_file
            self._file = self._opened.enter_context(opened(self._path))
        return self

    def add(self, content: bytes) -> tuple[str, str]:
        """Appends an image unless it is there already; returns its address and its SHA-256."""
        digest = hashlib.sha256(content)
        found = self._connection.execute(
            "SELECT at FROM blob WHERE sha256 = ?", (digest.digest(),)
        ).fetchone()
        at = found[0] if found else self._append(content, digest.digest())
        return range_address(self._work.blob_name, at, len(content)), digest.hexdigest()

    def _append(self, content: bytes, digest: bytes) -> int:
        self._connection.execute("INSERT INTO blob VALUES (?, ?)", (digest, self._offset))
        try:
            if self._file:
                self._file.write(content)
        except OSError as error:
            raise not_writable(Path(str(self._path)), error) from error
        at, self._offset = self._offset, self._offset + len(content)
        return at

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is None and kind is None:
            self._check()
        self._opened.__exit__(kind, error, trace)

    def _check(self) -> None:
        if self._path and self._path.stat().st_size != self._offset:
            self._path.unlink()
            raise DataError(f"{self._path} was damaged and is removed; run prepare again")


@contextmanager
def _growing(path: Path) -> Iterator[BinaryIO]:
    """A file under its own name whose every byte can be read as soon as it is written."""
    try:
        file = path.open("wb", buffering=0)
    except OSError as error:
        raise not_writable(path, error) from error
    with file:
        yield file
