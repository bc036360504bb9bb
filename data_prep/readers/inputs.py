"""Annotation files as readers see them: which they are, their bytes, and their lines."""

import glob
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from braceexpand import braceexpand

from data_prep.errors import DataError
from data_prep.stores import open_input

MAX_LINE_BYTES = 1 << 28
"""A longer line is no line of annotations; it would have to be held whole."""


def input_files(pattern: str) -> list[str]:
    """The files that a recipe's `annotations` means, in order of their names.

    Braces stand for several names, as in `part-{000..003}.tar`, also in remote locations; `*` and
    `?` for the files of this machine whose last part fits.

    Raises:
        DataError: Nothing fits, or two files have the same name.
    """
    if "://" not in pattern and Path(pattern).exists():
        return [pattern]
    try:
        names = list(braceexpand(pattern))
    except ValueError as error:
        raise DataError(f"{pattern}: unbalanced braces") from error
    files: list[str] = []
    for name in names:
        if "://" in name or not glob.has_magic(name):
            files.append(name)
            continue
        folder = Path(name).parent
        found = sorted(str(path) for path in folder.glob(Path(name).name) if path.is_file())
        if not found:
            raise DataError(f"{name}: no such files")
        files.extend(found)
    folders = {folder_of(name) for name in files}
    if len(folders) > 1 or len(set(files)) < len(files):
        raise DataError(f"{pattern}: its files have to be different ones of one folder")
    return files


def folder_of(location: str) -> str:
    """The folder that a file lies in, also a remote one."""
    if "://" in location:
        return location.rpartition("/")[0]
    return str(Path(location).absolute().parent)


@contextmanager
def opened(location: str) -> Iterator[BinaryIO]:
    """Opens an annotation file, through gzip when it ends in .gz; DataError when reading fails."""
    with open_input(location) as file:
        try:
            if location.endswith(".gz"):
                with gzip.GzipFile(fileobj=file) as unpacked:
                    yield cast(BinaryIO, unpacked)
            else:
                yield file
        except (OSError, EOFError, zlib.error) as error:
            words = getattr(error, "strerror", None) or str(error)
            raise DataError(f"{location} cannot be read: {words}") from error


def lines(location: str) -> Iterator[tuple[int, int, bytes]]:
    """Yields number (from 1), offset in bytes, and content of every line that is not blank.

    Raises:
        DataError: The file cannot be read, or has a line that is too long to be one.
    """
    with opened(location) as file:
        number, offset = 0, 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise DataError(
                    f"{location}: line {number} is longer than {MAX_LINE_BYTES} bytes; "
                    "is this the right file?"
                )
            if not line.isspace():
                yield number, offset, line
            offset += len(line)
