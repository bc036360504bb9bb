"""Images that can only be read in order, copied once into a file where a range is an image."""

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from data_prep.errors import DataError
from data_prep.files import TEMPORARY_SUFFIX
from data_prep.readers.scratch import Scratch


class Blob:
    """Distinct images one after another; the file gets its name when the block ends well.

    A file that is there already was made from the same input, as its name says, and is kept with
    its time: no shard has to be made again because of it.
    """

    def __init__(self, path: Path | None, name: str, scratch: Scratch) -> None:
        self._path, self._name, self._connection = path, name, scratch.connection
        self._offset = 0
        self._connection.execute(
            "CREATE TABLE blob (sha256 BLOB PRIMARY KEY, at INTEGER) WITHOUT ROWID"
        )
        self._file: BinaryIO | None = None
        self._temporary: Path | None = None

    def __enter__(self) -> Self:
        if self._path and not self._path.exists():
            name = f".{self._path.name}.{os.getpid()}{TEMPORARY_SUFFIX}"
            self._temporary = self._path.with_name(name)
            try:
                self._file = self._temporary.open("wb")
            except OSError as error:
                raise DataError(f"{self._path} cannot be written: {error.strerror}") from error
        return self

    def add(self, content: bytes) -> tuple[str, str]:
        """Appends an image unless it is there already; returns its address and its SHA-256."""
        digest = hashlib.sha256(content)
        found = self._connection.execute(
            "SELECT at FROM blob WHERE sha256 = ?", (digest.digest(),)
        ).fetchone()
        at = found[0] if found else self._append(content, digest.digest())
        return f"{self._name}@{at}+{len(content)}", digest.hexdigest()

    def _append(self, content: bytes, digest: bytes) -> int:
        self._connection.execute("INSERT INTO blob VALUES (?, ?)", (digest, self._offset))
        try:
            if self._file:
                self._file.write(content)
        except OSError as error:
            raise DataError(f"{self._path} cannot be written: {error.strerror}") from error
        at, self._offset = self._offset, self._offset + len(content)
        return at

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is None or self._temporary is None or self._path is None:
            self._check(kind)
            return
        try:
            with self._file:
                self._file.flush()
                os.fsync(self._file.fileno())
            if kind is None:
                self._temporary.replace(self._path)
        except OSError as failed:
            raise DataError(f"{self._path} cannot be written: {failed.strerror}") from failed
        finally:
            self._temporary.unlink(missing_ok=True)

    def _check(self, kind: type[BaseException] | None) -> None:
        if kind is None and self._path and self._path.stat().st_size != self._offset:
            self._path.unlink()
            raise DataError(f"{self._path} was damaged and is removed; run prepare again")
