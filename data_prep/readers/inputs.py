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
from data_prep.stores import input_name, open_input, parent_location

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
            if "*" in name:
                raise DataError(
                    f"{name}: '*' finds files of this machine only; write braces, {{0..9}}"
                )
            files.append(name)
            continue
        folder = Path(name).parent
        found = sorted(str(path) for path in folder.glob(Path(name).name) if path.is_file())
        if not found:
            raise DataError(f"{name}: no such files")
        files.extend(found)
    folders = {parent_location(name) for name in files}
    if len(folders) > 1 or len(set(files)) < len(files):
        raise DataError(f"{pattern}: its files have to be different ones of one folder")
    return files


def packed(location: str) -> bool:
    """Whether a file is packed with gzip, by its name."""
    return input_name(location).endswith(".gz")


def require_ranges(location: str) -> None:
    """Raises DataError when images inside a file cannot be reached where they are."""
    if packed(location):
        raise DataError(f"{location}: images inside gzip cannot be reached; unpack the file")


@contextmanager
def opened(location: str) -> Iterator[BinaryIO]:
    """Opens an annotation file, through gzip when it ends in .gz; DataError when reading fails."""
    with open_input(location) as file:
        try:
            if packed(location):
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
