"""Where the members of a zip lie, and how one is read without trusting its declared size."""

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator

from data_prep.quarantine import Reason, Rejected
from data_prep.stores.base import StoreError, check_size
from data_prep.stores.members import Member
from data_prep.stores.ranged import RangedFile, as_stream

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_MAGIC = b"PK\x03\x04"
_USUAL_EXTRA = 64
"""Bytes of extra fields that the first read allows for, so that one request is enough."""
_ENCRYPTED = 1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def scan_zip(file: RangedFile) -> Iterator[tuple[str, Member]]:
    """Names and places of all members but folders, from the directory at the zip's end.

    Raises:
        StoreError: It is no zip, or its directory is damaged.
    """
    try:
        with zipfile.ZipFile(as_stream(file)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, EOFError, ValueError, OverflowError, struct.error) as error:
        raise StoreError(f"{file.name} is not a whole zip: {error}") from error
    except NotImplementedError as error:
        # How zipfile refuses a version of the format that it cannot read.
        raise StoreError(f"{file.name}: {error}; pack it again as a plain zip") from error
    for entry in entries:
        if not entry.is_dir():
            yield entry.filename, _member(entry, file.size)


def _member(entry: zipfile.ZipInfo, end: int) -> Member:
    problem = ""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind == stat.S_IFLNK:
        problem = "a link, which is not followed"
    elif kind not in (0, stat.S_IFREG):
        problem = "not a regular file"
    elif entry.flag_bits & _ENCRYPTED:
        problem = "encrypted"
    elif entry.compress_type not in _METHODS:
        problem = f"compressed by method {entry.compress_type}; only deflate (8) can be read"
    elif entry.header_offset < 0 or entry.header_offset + entry.compress_size > end:
        problem = f"cut off: {entry.compress_size} bytes do not fit into the archive"
    elif entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
        problem = "damaged: two sizes for the same bytes"
    return Member(
        entry.header_offset,
        entry.file_size,
        entry.compress_size,
        entry.compress_type,
        entry.CRC,
        problem,
    )


def read_member(file: RangedFile, name: str, member: Member) -> bytes:
    """The content of a member, checked against its size and CRC.

    Raises:
        Rejected: It is too big, or not what the directory says of it.
        StoreError: The zip cannot be read.
    """
    check_size(name, member.size)
    # Deflate never makes much more of its input, so a bigger claim only costs memory.
    check_size(name, member.packed)
    packed = _packed(file, name, member)
    content = packed if member.method == zipfile.ZIP_STORED else _inflated(name, packed, member)
    if zlib.crc32(content) != member.crc:
        raise Rejected(Reason.UNREADABLE_IMAGE, f"{name}: damaged in the archive (CRC)")
    return content


def _packed(file: RangedFile, name: str, member: Member) -> bytes:
    guess = _LOCAL_HEADER.size + len(name.encode()) + _USUAL_EXTRA + member.packed
    start = file.read_at(member.offset, min(guess, file.size - member.offset))
    if len(start) < _LOCAL_HEADER.size or not start.startswith(_MAGIC):
        raise Rejected(Reason.UNREADABLE_IMAGE, f"{name}: damaged in the archive (header)")
    _, name_length, extra_length = _LOCAL_HEADER.unpack_from(start)
    begin = _LOCAL_HEADER.size + name_length + extra_length
    missing = begin + member.packed - len(start)
    if missing > 0:
        if member.offset + begin + member.packed > file.size:
            raise Rejected(Reason.UNREADABLE_IMAGE, f"{name}: cut off in the archive")
        start += file.read_at(member.offset + len(start), missing)
    return start[begin : begin + member.packed]


def _inflated(name: str, packed: bytes, member: Member) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        # One byte more than declared is enough to notice a bomb.
        content = inflater.decompress(packed, member.size + 1)
    except zlib.error as error:
        raise Rejected(Reason.UNREADABLE_IMAGE, f"{name}: damaged in the archive") from error
    if len(content) != member.size:
        raise Rejected(
            Reason.UNREADABLE_IMAGE, f"{name}: not the {member.size} bytes that the archive says"
        )
    return content
