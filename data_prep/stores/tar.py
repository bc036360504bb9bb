"""Where the members of an uncompressed tar lie. Only headers are parsed; nothing is unpacked."""

import io
import tarfile
from collections.abc import Iterator

from data_prep.stores.base import StoreError
from data_prep.stores.members import Member
from data_prep.stores.ranged import RangedFile, as_stream

_MAX_HEADER_BYTES = 2**20
"""A long name or extended header above this is an attack on memory, not a name."""


class _Headers:
    """The stream as tarfile sees it: it never asks for more than headers."""

    def __init__(self, stream: io.BufferedReader, name: str) -> None:
        self._stream = stream
        self._name = name
        self.tell = stream.tell
        self.seek = stream.seek

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise StoreError(f"{self._name}: damaged: a header of {size} bytes")
        return self._stream.read(size)


def scan_tar(file: RangedFile) -> Iterator[tuple[str, Member]]:
    """Names and places of all members but folders, in the order of the tar.

    Raises:
        StoreError: It is no tar, or damaged; also when it is cut off inside a header.
    """
    stream = as_stream(file)
    try:
        with tarfile.open(fileobj=_Headers(stream, file.name), mode="r:") as tar:  # type: ignore[call-overload]
            position = -1
            while (entry := tar.next()) is not None:
                # tarfile keeps every member that it has seen: gigabytes for a million images.
                tar.members.clear()
                if entry.offset <= position:
                    raise StoreError(f"{file.name}: damaged at byte {position}: it runs in circles")
                position = entry.offset
                if not entry.isdir():
                    yield entry.name, _member(entry, file.size)
            _check_end(stream, file, tar.offset)
    except (tarfile.TarError, EOFError, ValueError, OverflowError, UnicodeError) as error:
        raise StoreError(f"{file.name} is not a whole tar: {error}") from error


def _member(entry: tarfile.TarInfo, end: int) -> Member:
    problem = ""
    if entry.issym() or entry.islnk():
        problem = "a link, which is not followed"
    elif not entry.isreg() or entry.issparse():
        problem = "not a regular file"
    elif entry.size < 0 or entry.offset_data + entry.size > end:
        problem = f"cut off: {entry.size} bytes do not fit into the archive"
    return Member(entry.offset_data, entry.size, entry.size, problem=problem)


def _check_end(stream: io.BufferedReader, file: RangedFile, offset: int) -> None:
    # tarfile takes a damaged header for the end of the archive.
    stream.seek(min(offset, file.size))
    block = stream.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        raise StoreError(f"{file.name}: damaged at byte {offset}: no header of a member")
