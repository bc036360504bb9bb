"""Annotation files, on this machine or in an object store."""

import hashlib
from pathlib import Path
from typing import BinaryIO

from data_prep.errors import DataError
from data_prep.stores.filesystems import open_filesystem
from data_prep.stores.locations import parse_location
from data_prep.stores.ranged import LocalFile, RangedFile, as_stream
from data_prep.stores.remote import RemoteFile
from data_prep.stores.retries import Retries


def open_ranged(location: str, retries: Retries | None = None) -> RangedFile:
    """Opens one file of which ranges are read.

    Raises:
        DataError: It is missing, cannot be read, or its location makes no sense.
    """
    parsed = parse_location(location)
    if not parsed.remote:
        return LocalFile(Path(parsed.path))
    retries = retries or Retries()
    name = f"{parsed.scheme}://{parsed.path}"
    try:
        return RemoteFile(open_filesystem(parsed, retries), parsed.path, name, retries)
    except FileNotFoundError as error:
        raise DataError(f"{name} cannot be read: no such object") from error


def open_input(location: str) -> BinaryIO:
    """Opens an annotation file for reading; it can be read by lines and seeked in.

    Raises:
        DataError: It is missing, cannot be read, or its location makes no sense. Reading from an
            object store raises StoreError, too, when the store goes away.
    """
    return as_stream(open_ranged(location))


def input_sha256(location: str) -> str:
    """SHA-256 of an annotation file as hex; errors as in open_input."""
    with as_stream(open_ranged(location)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def input_name(location: str) -> str:
    """Name of an annotation file without its folders."""
    return Path(parse_location(location).path).name
