"""The members of a shard, from headers that may be damaged or forged.

tarfile.open follows extension headers, links and sparse maps, which a shard never has; here each
header is judged alone, and everything but a regular file is damage.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar; offset and size in bytes are of its data."""

    name: str
    offset: int
    size: int


class DamagedTar(Exception):
    """Says at which byte a tar stops making sense."""


def walk_members(file: BinaryIO, size: int) -> Iterator[Member]:
    """Goes through the headers of a tar from its beginning.

    Args:
        file: The tar.
        size: Its bytes.

    Raises:
        DamagedTar: A header is none or of another kind, or the tar ends too early.
    """
    offset = 0
    while True:
        header = read_at(file, offset, _BLOCK)
        if len(header) < _BLOCK:
            raise DamagedTar(f"it ends at byte {offset} without the mark of its end")
        if not any(header):
            return
        member = _parsed(header, offset + _BLOCK)
        if member is None:
            raise DamagedTar(f"no header of a regular file at byte {offset}")
        if member.offset + member.size > size:
            raise DamagedTar(f"{member.name!r:.80} at byte {offset} is cut off")
        yield member
        offset = member.offset + member.size + -member.size % _BLOCK


def member_at(file: BinaryIO, offset: int) -> Member | None:
    """The member whose data begin at a byte; None when there is no such header before it."""
    if offset < _BLOCK or offset % _BLOCK:
        return None
    header = read_at(file, offset - _BLOCK, _BLOCK)
    return _parsed(header, offset) if len(header) == _BLOCK and any(header) else None


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """Bytes of a file from an offset; fewer where it ends."""
    file.seek(offset)
    return file.read(size)


def _parsed(header: bytes, offset: int) -> Member | None:
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return None
    if info.type != tarfile.REGTYPE or info.size < 0:
        return None
    return Member(info.name, offset, info.size)
